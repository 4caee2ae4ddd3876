"""The losses of several widths of nested MLPs, together or one drawn per step (MatFormer)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.edits.granularity import granularity, nested_parts
from modwright.training.batches import Batch, unwrapped
from modwright.training.objectives.base import (
    Backward,
    Losses,
    Objective,
    make_objective,
    objective,
)

__all__ = ["Nested"]

Mode = Literal["joint", "sampled"]
Reduction = Literal["mean", "sum"]


@objective("nested")
@dataclass(frozen=True)
class Nested(Objective):
    """Trains every width that nested MLPs have, each with one width in all layers (2310.07707).

    Joint: every step adds the gradients of all widths on the same batch. Sampled: a step trains one
    width that is drawn; the draw depends on the seed and the progress alone, so all processes draw
    alike and a training that was stopped goes on the same. A model that is not in training is
    judged by all widths.

    Attributes:
        mode: "joint" or "sampled".
        loss: the objective that each width is trained by; its name.
        probabilities: of the widths, smallest first, where they are drawn; equal unless said.
        reduction: of joint losses: "mean", or "sum" as the authors' code has it.
        seed: of the draws.

    Raises:
        InvalidInputError: probabilities that are none; a model without nested MLPs, or of layers
            with other numbers of widths.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> loss, named = Nested()(nested, {"input_ids": torch.tensor([[3, 4, 5]])})
        >>> sorted(named)
        ['width_1_of_4', 'width_2_of_4', 'width_3_of_4', 'width_4_of_4']
    """

    mode: Mode = "joint"
    loss: str = "next_token"
    probabilities: tuple[float, ...] | None = None
    reduction: Reduction = "mean"
    seed: int = 0
    _progress: ClassVar[float] = 0.0
    _of_width: ClassVar[Any] = None

    def __post_init__(self) -> None:
        for name, choices in (("mode", Mode), ("reduction", Reduction)):
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(name, getattr(self, name), get_args(choices))
        object.__setattr__(self, "_of_width", make_objective(self.loss))
        if (shares := self.probabilities) is None:
            return
        if self.mode != "sampled":
            raise InvalidInputError("probabilities are those of widths that are sampled")
        if min(shares, default=-1) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise InvalidInputError(f"probabilities are from 0 on and sum to 1, not {list(shares)}")

    def prepare(self, model: Any) -> None:
        self._count(model)

    def at(self, progress: float) -> None:
        object.__setattr__(self, "_progress", progress)

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        count = self._count(model)
        several = self._trained(model, count)
        losses, named = [], dict[str, Tensor]()
        for number in several:
            with self._width(model, number):
                one, _ = self._of_width(model, batch)
            losses.append(one)
            named[f"width_{number + 1}_of_{count}"] = one.detach()
        return torch.stack(losses).sum() * self._share(len(several)), named

    def step(self, model: nn.Module, batch: Batch, backward: Backward) -> Losses:
        """One width after the other, so that the activations of one alone are kept."""
        count = self._count(model)
        several = self._trained(model, count)
        total, named = torch.zeros(()), dict[str, Tensor]()
        for number in several:
            with self._width(model, number):
                one, _ = self._of_width(model, batch)
                backward(one * self._share(len(several)))
            named[f"width_{number + 1}_of_{count}"] = one.detach()
            total = total.to(one.device) + one.detach() * self._share(len(several))
        return total, named

    def drawn(self, count: int) -> int:
        """The number of the width that is trained at this progress.

        Example:
            >>> Nested(mode="sampled", probabilities=(0.0, 1.0)).drawn(2)
            1
        """
        draw = random.Random(f"{self.seed} {self._progress!r}")
        return draw.choices(range(count), self.probabilities)[0]

    def _trained(self, model: nn.Module, count: int) -> list[int]:
        one = self.mode == "sampled" and model.training
        return [self.drawn(count)] if one else list(range(count))

    def _share(self, count: int) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / count

    def _count(self, model: Any) -> int:
        """How many widths every nested MLP has."""
        counts = {len(part.module.shape.widths) for part in nested_parts(unwrapped(model))}
        if len(counts) > 1:
            raise InvalidInputError(f"nested MLPs have {sorted(counts)} widths; all need as many")
        count = counts.pop()
        if self.probabilities is not None and len(self.probabilities) != count:
            raise InvalidInputError(f"{len(self.probabilities)} probabilities for {count} widths")
        return count

    @contextmanager
    def _width(self, model: Any, number: int) -> Iterator[None]:
        own = unwrapped(model)
        widths = [part.module.shape.widths[number] for part in nested_parts(own)]
        with granularity(own, widths):
            yield
