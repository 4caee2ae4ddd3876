"""What a training is told: its objective, what learns, and arguments of transformers' Trainer."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from modwright.core.errors import InvalidInputError, first_line, unknown_name
from modwright.training.learning import Learns, check_learns
from modwright.training.objectives.base import Objective, make_objective
from modwright.training.sharding import asks_sharding

__all__ = ["ONE_CYCLE", "Training", "argument_names"]

ONE_CYCLE = "one_cycle"
"""Our own value of ``lr_scheduler_type``: torch's OneCycleLR."""

_OURS = ("objective", "teacher", "learns", "ema_decay")
# Arguments that the training itself sets, by what to say instead.
_SET_HERE = {
    "output_dir": "the output is where the training is asked to keep its checkpoints",
    "remove_unused_columns": "an objective takes the batch as the data gives it",
    "label_names": "labels are called labels",
    "load_best_model_at_end": "the best state is kept where something is measured",
    "resume_from_checkpoint": "a training goes on by itself from the newest whole checkpoint",
    "do_train": "it is a training",
    "do_predict": "it is a training",
    "push_to_hub": "push what was saved",
}
_DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "report_to": [],
    "remove_unused_columns": False,
}


def argument_names() -> list[str]:
    """The keys of transformers' TrainingArguments that a training may be given."""
    names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    return [name for name in names if name not in _SET_HERE]


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        objective: what is minimized: itself, or its name.
        learns: "all", "norms", a selector, or ``{"lora": {...}}``; None leaves it as the model has
            it: see :func:`~modwright.training.learning.learn`.
        ema_decay: of a running mean of the weights, which the result gets; None has none.
        arguments: of transformers' TrainingArguments: ``max_steps``, ``learning_rate``, ``bf16``,
            ``gradient_accumulation_steps``; ``lr_scheduler_type`` may be "one_cycle", too.

    Raises:
        InvalidInputError: an unknown objective or argument, or a value out of its range.

    Example:
        >>> Training.of({"objective": "next_token", "max_steps": 5, "learning_rate": "1e-4"})
        Training(objective=NextToken(label_smoothing=0.0), learns='all', ema_decay=None, \
arguments={'max_steps': 5, 'learning_rate': 0.0001})
    """

    objective: Any = "next_token"
    learns: Learns | None = "all"
    ema_decay: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", make_objective(self.objective))
        check_learns(self.learns)
        decay = self.ema_decay
        if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
            raise InvalidInputError(f"ema_decay lies between 0 and 1, not {decay}")
        object.__setattr__(self, "arguments", _checked(self.arguments))

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Training:
        """From one flat mapping, as a recipe has it.

        The keys are ``objective``, ``teacher``, ``learns``, ``ema_decay`` and the names of
        TrainingArguments. An objective with options is ``{NAME: {...}}``.
        """
        given = dict(keys)
        objective: Any = given.pop("objective", "next_token")
        if "teacher" in given:
            teacher = given.pop("teacher")
            if isinstance(objective, Objective):
                raise InvalidInputError("teacher: the objective that is given has its own")
            objective = objective if isinstance(objective, Mapping) else {objective: {}}
            objective = {n: {"teacher": teacher, **(o or {})} for n, o in objective.items()}
        ours = {name: given.pop(name) for name in ("learns", "ema_decay") if name in given}
        valid = [*_OURS, *argument_names()]
        for key in given:
            if key in _SET_HERE:
                raise InvalidInputError(f"{key}: {_SET_HERE[key]}")
            if key not in valid:
                raise unknown_name("key of a training", key, valid)
        return cls(objective, **ours, arguments=given)

    @property
    def one_cycle(self) -> bool:
        """The learning rate follows torch's OneCycleLR."""
        return bool(self.arguments.get("lr_scheduler_type") == ONE_CYCLE)

    @property
    def sharded(self) -> bool:
        """Several processes share the weights (FSDP2), on any device."""
        return asks_sharding(self.arguments)

    def training_arguments(self, directory: str, *, keep: bool) -> TrainingArguments:
        """For transformers' Trainer; checkpoints are written where they are kept."""
        own = {
            "save_strategy": "epoch" if keep else "no",
            "disable_tqdm": not keep,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        given = dict(self.arguments)
        if not keep:  # nothing is left of them
            given |= {"save_strategy": "no"}
        if self.one_cycle:
            given |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
        return _made({**_DEFAULTS, **own, **given, "output_dir": directory})


def _made(given: Mapping[str, Any]) -> TrainingArguments:
    # The sharding is ours, on any device: accelerate passes it over on CPUs without a word.
    plain = {name: value for name, value in given.items() if name not in ("fsdp", "fsdp_config")}
    try:
        return TrainingArguments(**copy.deepcopy(plain))  # it writes into its tables
    except (TypeError, ValueError, ImportError) as error:
        raise InvalidInputError(f"transformers' TrainingArguments: {first_line(error)}") from error


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the types that they have, each a valid one."""
    valid = argument_names()
    found = {}
    kinds = {f.name: str(f.type) for f in dataclasses.fields(TrainingArguments)}
    for name, value in arguments.items():
        if name not in valid:
            said = f"; {_SET_HERE[name]}" if name in _SET_HERE else ""
            raise InvalidInputError(f"{unknown_name('argument', name, valid)}{said}")
        found[name] = _number(name, value, kinds[name])
    for name in ("max_steps", "num_train_epochs", "per_device_train_batch_size", "learning_rate"):
        if name in found and not found[name] > 0:
            raise InvalidInputError(f"{name} is above 0, not {found[name]}")
    asks_sharding(found)
    if found:
        plain = {k: v for k, v in found.items() if (k, v) != ("lr_scheduler_type", ONE_CYCLE)}
        with tempfile.TemporaryDirectory() as scratch:
            _made(
                {
                    **_DEFAULTS,
                    "use_cpu": not torch.cuda.is_available(),
                    **plain,
                    "output_dir": scratch,
                }
            )
    return found


def _number(name: str, value: Any, kind: str) -> Any:
    """A number, also where YAML takes ``1e-4`` for text."""
    if "float" not in kind or "str" in kind or isinstance(value, bool) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name}: must be a number, not {value!r}") from None
