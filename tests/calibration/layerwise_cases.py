"""Data and collectors with which the tests look at a walk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from helpers import random_data
from modwright.anatomy import Anatomy, Block, HookPoint
from modwright.calibration import CalibrationData, Collector, Statistics, calibrate

__all__ = ["Everything", "Interrupted", "StopsAfter", "equal_statistics", "rows", "three_rows"]
__all__ += ["walk", "without_mask"]


def rows(lengths: Sequence[int] = (10, 10, 10), seed: int = 0, first: int = 3) -> list[Tensor]:
    """Random tokens of a vocabulary of 128, without the padding token 0."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(first, 128, (length,), generator=generator) for length in lengths]


def three_rows(model: Any) -> CalibrationData:
    """Three rows of tokens, or three images, in batches of two."""
    return random_data(model, count=3, length=10, batch_size=2)


def without_mask(data: CalibrationData) -> list[dict[str, Tensor]]:
    """The batches as the model is called with, where nothing is padding."""
    given = [batch.tensors() for batch in data]
    return [{k: t for k, t in batch.items() if k != "attention_mask"} for batch in given]


def walk(
    model: Any, *collectors: Collector, data: CalibrationData | None = None, **how: Any
) -> Any:
    """Calibrates on three rows in batches of two, unless other data is given."""
    anatomy = model if isinstance(model, Anatomy) else Anatomy.of(model)
    data = three_rows(anatomy.model) if data is None else data
    return calibrate(anatomy, data, collectors, **how)


def equal_statistics(a: Statistics, b: Statistics) -> bool:
    """Bit for bit."""
    if len(a) != len(b):
        return False
    for one, two in zip(a, b):
        if one.keys() != two.keys() or not all(torch.equal(one[n], two[n]) for n in one):
            return False
    return True


@dataclass
class Everything:
    """A collector from outside: stores the streams at a block's boundary and what
    ``hook_point`` reads.
    """

    role: str = ""
    history: int = 1
    watched: list[int] = field(default_factory=list)

    def start(self, block: Block) -> Any:
        self.watched.append(block.index)
        sublayer = getattr(block, self.role) if self.role else None
        return _EverythingWatch(
            {} if sublayer is None else {"sublayer_input": sublayer.sublayer_input}
        )

    def describe(self) -> dict[str, Any]:
        return {"collector": "everything", "role": self.role}

    def bytes(self, block: Block) -> int:
        return 0


class _EverythingWatch:
    def __init__(self, hook_points: Mapping[str, HookPoint]) -> None:
        self.hook_points = hook_points
        self.activations: dict[str, list[Tensor]] = {}

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        assert torch.equal(previous[0], activations["resid_pre"])
        for name, value in activations.items():
            self.activations.setdefault(name, []).append(value.clone())

    def result(self) -> dict[str, Tensor]:
        return {name: torch.cat(values) for name, values in self.activations.items()}


class Interrupted(Exception):
    """Stands for the user's Ctrl-C."""


class StopsAfter:
    """A progress that stops the run after some steps; it also remembers what it was told."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps, self.done, self.total, self.label = steps, 0, 0, ""

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[StopsAfter]:
        self.label, self.total = name, total
        yield self

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.steps is not None and self.done >= self.steps:
            raise Interrupted
