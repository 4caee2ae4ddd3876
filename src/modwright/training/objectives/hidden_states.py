"""Distillation on hidden states: blocks of the student learn what blocks of the teacher give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.anatomy import Anatomy
from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of
from modwright.training.objectives.base import Losses, Objective, objective
from modwright.training.teachers import LiveTeacher, as_teacher, model_of_teacher, opened

__all__ = ["BlockObjective", "HiddenStates", "naive_hidden_loss", "paired"]

Layers = Literal["last", "uniform"] | dict[int, int]
Loss = Literal["mse", "cosine", "normalized_mse"]


def paired(layers: Any, ours: int, theirs: int) -> dict[int, int]:
    """Which block of a teacher of ``theirs`` blocks each block of a student learns from.

    Args:
        layers: "last": the last alone; "uniform": every one, spread evenly over the teacher's, the
            last from the last; or a mapping. Negative numbers count from the end.
        ours: blocks of the student.
        theirs: blocks of the teacher.

    Raises:
        InvalidInputError: a block that is not there.

    Example:
        >>> paired("uniform", 3, 6), paired({-1: -2}, 3, 6)
        ({0: 1, 1: 3, 2: 5}, {2: 4})
    """
    if layers == "last":
        layers = {-1: -1}
    if layers == "uniform":
        return {
            i: (i + 1) * theirs // ours - 1 if ours <= theirs else i * theirs // ours
            for i in range(ours)
        }
    if not isinstance(layers, Mapping) or not layers:
        raise InvalidInputError(
            f"layers: last, uniform, or a mapping of blocks to the teacher's, not {layers!r}"
        )
    found = {}
    for one, other in layers.items():
        for number, count, whose in ((one, ours, "model"), (other, theirs, "teacher")):
            if not -count <= int(number) < count:
                raise InvalidInputError(
                    f"layers: the {whose} has no block {number}; it has 0 to {count - 1}"
                )
        found[int(one) % ours] = int(other) % theirs
    return found


@dataclass(eq=False)
class BlockObjective(Objective):
    """Compares hook points in blocks of a student with those of a live teacher.

    Attributes:
        teacher: a model, the path of one, or "source".
        layers: "last", "uniform", or block of the student -> block of the teacher.

    Raises:
        InvalidInputError: a stored teacher.
    """

    teacher: Any = "source"
    layers: Layers = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str):
            self.teacher = as_teacher(self.teacher)
        self._points: dict[int, tuple[HookPoint, HookPoint]] = {}

    def teachers(self) -> tuple[nn.Module, ...]:
        return (model_of_teacher(opened(self.teacher)),)


@objective("hidden_states")
@dataclass(eq=False)
class HiddenStates(BlockObjective):
    """What the residual stream holds behind blocks is that of the teacher (arXiv 1909.10351).

    Where the two have different widths, a linear layer of this objective maps the student's; it
    learns along and is no part of the result. Padding does not count.

    Attributes:
        loss: "mse"; "normalized_mse", which is divided by the mean square of the teacher's; or
            "cosine", 1 - cosine.

    Raises:
        InvalidInputError: a stored teacher, or layers that are not there.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> same = HiddenStates(model)
        >>> same.prepare(model)
        >>> float(same(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})[0])
        0.0
    """

    loss: Loss = "normalized_mse"
    parts: nn.Module | None = field(default=None, init=False)  # type: ignore[misc]

    def prepare(self, model: Any) -> None:
        ours, theirs = Anatomy.of(model), Anatomy.of(self.teachers()[0])
        pairs = paired(self.layers, len(ours.blocks), len(theirs.blocks))
        maps = nn.ModuleDict()
        for one, other in pairs.items():
            self._points[one] = ours.blocks[one].resid_post, theirs.blocks[other].resid_post
            width, wanted = (_width(a, i) for a, i in ((ours, one), (theirs, other)))
            if width != wanted:
                maps[str(one)] = _start(width, wanted)
        self.parts = maps if len(maps) else None

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        if not self._points:
            raise InvalidInputError("call `prepare` with the model first")
        asked = {i: theirs for i, (_, theirs) in self._points.items()}
        with torch.no_grad(), capture(asked) as wanted:
            LiveTeacher(self.teachers()[0]).output(batch)
        with capture({i: ours for i, (ours, _) in self._points.items()}, gradients=True) as seen:
            model(**inputs_of(batch))
        losses = [self._of_block(i, seen[i], wanted[i], batch) for i in self._points]
        total = torch.stack(losses).mean()
        return total, {"hidden_states": total.detach()}

    def _of_block(self, index: int, ours: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        maps: Any = self.parts
        if maps is not None and str(index) in maps:
            ours = maps[str(index)](ours)
        if ours.shape != theirs.shape:
            raise InvalidInputError(
                f"hidden states of shapes {tuple(ours.shape)} and {tuple(theirs.shape)} are not "
                "compared"
            )
        return _LOSSES[self.loss](*_real_positions(ours.float(), theirs.float(), batch))


def _width(anatomy: Anatomy, index: int) -> int:
    """Of the stream behind a block."""
    found = [s.hidden_size for _, s in anatomy.blocks[index].sublayers() if s.hidden_size]
    return found[-1] if found else anatomy.hidden_size


def _start(width: int, wanted: int) -> nn.Linear:
    """The first channels as they are, of a map whose start no draw decides."""
    made = nn.Linear(width, wanted, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.eye(wanted, width))
    return made


def _real_positions(ours: Tensor, theirs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, d) of both, padding left out."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != ours.shape[:-1]:
        return ours.flatten(0, -2), theirs.flatten(0, -2)
    return ours[mask.bool()], theirs[mask.bool()]


def _normalized(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.mse_loss(ours, theirs) / theirs.square().mean().clamp(min=1e-12)


def _cosine(ours: Tensor, theirs: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()


_LOSSES: dict[str, Any] = {"mse": F.mse_loss, "normalized_mse": _normalized, "cosine": _cosine}


def naive_hidden_loss(ours: Tensor, theirs: Tensor, loss: str) -> Tensor:
    """The truth: of positions (N, d), one at a time, in float64."""
    ours, theirs = ours.double(), theirs.double()
    each = []
    for one, other in zip(ours, theirs):
        if loss == "cosine":
            each.append(1 - one @ other / (one.norm() * other.norm()))
        else:
            each.append((one - other).square().sum() / len(one))
    mean = torch.stack(each).mean()
    if loss == "normalized_mse":
        mean = mean / torch.stack([other.square().sum() / len(other) for other in theirs]).mean()
    return mean
