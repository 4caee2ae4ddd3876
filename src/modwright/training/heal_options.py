"""How a model is healed: how much it learns from, what learns, and what judges it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.training.learning import Learns, check_learns
from modwright.training.objectives import NextToken
from modwright.training.options import Training

__all__ = ["Heal"]


@dataclass(frozen=True)
class Heal:
    """How a model is healed.

    Attributes:
        tokens: that it learns from; 16,384 where no minutes are given either.
        minutes: that it may take, measuring included and a control left out: ten steps are timed,
            and the number of steps follows; the clock is not read again.
        learns: "block[*]", all but embeddings and head; "all"; "norms"; a selector; or
            ``{"lora": {"r": 16}}``.
        own_loss: the share of the text's own loss beside the divergence from the teacher; with 1
            the teacher only judges.
        temperature: of the teacher's answers.
        learning_rate: at its height; None takes 1e-4, and 1e-3 for adapters and norms.
        length: tokens of a window.
        batch_tokens: tokens of a step, over all processes.
        rows_at_once: windows of one forward pass; more passes make a step.
        held_out_windows: of each held-out text.
        held_out_length: tokens of such a window.
        control: the baseline is trained the same way, and stands beside the result.
        arguments: more of transformers' TrainingArguments; ``max_steps`` overrules tokens.

    Raises:
        InvalidInputError: a number out of its range.

    Example:
        >>> Heal(tokens=8192).rate, Heal(learns={"lora": {"r": 8}}).rate
        (0.0001, 0.001)
    """

    tokens: int | None = None
    minutes: float | None = None
    learns: Learns = "block[*]"
    own_loss: float = 0.0
    temperature: float = 1.0
    learning_rate: float | None = None
    length: int = 256
    batch_tokens: int = 1024
    rows_at_once: int = 2
    held_out_windows: int = 6
    held_out_length: int = 512
    control: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens is not None and self.minutes is not None:
            raise InvalidInputError("heal: give tokens or minutes, not both")
        for name in ("tokens", "minutes", "learning_rate", "temperature", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"heal: {name} is above 0, not {value}")
        for name in ("length", "rows_at_once", "held_out_windows", "held_out_length"):
            if getattr(self, name) < 1 + (name.endswith("length")):
                raise InvalidInputError(f"heal: {name} is too small: {getattr(self, name)}")
        if not 0 <= self.own_loss <= 1:
            raise InvalidInputError(f"heal: own_loss lies between 0 and 1, not {self.own_loss}")
        check_learns(self.learns)
        self.training(1, NextToken())

    @property
    def rate(self) -> float:
        """The learning rate at its height."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if isinstance(self.learns, Mapping) or self.learns == "norms" else 1e-4

    @property
    def rows(self) -> tuple[int, int]:
        """Windows of one pass, and passes of a step; of one process."""
        windows, shared = max(round(self.batch_tokens / self.length), 1), distributed.size()
        if windows % shared:
            raise InvalidInputError(
                f"heal: {shared} processes cannot share the {windows} windows of a step; give "
                f"batch_tokens a multiple of {shared} x {self.length}"
            )
        at_once = min(self.rows_at_once, windows // shared)
        return at_once, max(round(windows // shared / at_once), 1)

    @property
    def step_tokens(self) -> int:
        """Tokens that one step learns from, over all processes."""
        at_once, passes = self.rows
        return at_once * passes * self.length * distributed.size()

    def training(self, steps: int, objective: Any) -> Training:
        """Of so many steps."""
        at_once, passes = self.rows
        arguments = {
            "max_steps": steps,
            "learning_rate": self.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": math.ceil(0.05 * steps),
            "weight_decay": 0.0,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": passes,
            "save_strategy": "steps",
            "save_steps": max(steps // 8, 1),
            "save_total_limit": 2,
            **{name: value for name, value in self.arguments.items() if name != "max_steps"},
        }
        return Training(objective, self.learns, arguments=arguments)
