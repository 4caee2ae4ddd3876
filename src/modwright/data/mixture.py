"""Several datasets as one: rows of each in turn, by weights, until the first is used up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modwright.core.errors import InvalidInputError
from modwright.data.dataset import Data, Rows, Split

__all__ = ["Mixture", "each_once", "in_turn", "mixed"]


def in_turn(weights: Sequence[float], counts: Sequence[int]) -> list[tuple[int, int]]:
    """The order of a mixture: at each step the dataset whose share is furthest behind.

    It ends before the first row that its dataset has not. The order does not depend on a seed.

    Args:
        weights: shares, of any sum.
        counts: rows that there are of each.

    Returns:
        (dataset, its row), step by step.

    Example:
        >>> in_turn([2, 1], [4, 9])
        [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    shares = [weight / sum(weights) for weight in weights]
    taken = [0] * len(counts)
    order: list[tuple[int, int]] = []
    while True:
        behind = [share * (len(order) + 1) - row for share, row in zip(shares, taken)]
        at = max(range(len(behind)), key=lambda i: (round(behind[i], 9), -i))
        if taken[at] == counts[at]:
            return order
        order.append((at, taken[at]))
        taken[at] += 1


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several splits in an order: each entry is a split and the row of it."""

    parts: tuple[Split, ...]
    order: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Rows:
        part, row = self.order[index]
        return self.parts[part][row]

    def set_epoch(self, epoch: int) -> None:
        """Tells it to the parts that ask."""
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def mixed(parts: Sequence[Data], weights: Sequence[float]) -> Data:
    """Datasets of one kind as one, which is measured on all that they hold out.

    Raises:
        InvalidInputError: kinds, classes or ways to make a batch that do not go together.

    Example:
        >>> import torch
        >>> from modwright.data.dataset import TensorRows
        >>> rows = TensorRows({"labels": torch.arange(3)})
        >>> len(mixed([Data(rows, name="one"), Data(rows, name="other")], [1, 1]).train)
        6
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if other.kind != first.kind:
            raise InvalidInputError(
                f"{other.kind} ({other.name}) cannot be mixed with {first.kind} ({first.name})"
            )
        if other.labels != first.labels:
            raise InvalidInputError(f"{other.name} has other classes than {first.name}")
        if other.processor != first.processor:
            raise InvalidInputError(f"images of {other.name} are not prepared as of {first.name}")
        if _options(other) != _options(first):
            raise InvalidInputError(f"batches of {other.name} are not made as of {first.name}")
    order = in_turn(weights, [len(part.train) for part in parts])
    tests = [part.test for part in parts if part.test is not None]
    rows = tuple((i, row) for i, test in enumerate(tests) for row in range(len(test)))
    notes = [note for part in parts for note in part.notes]
    for i, part in enumerate(parts):
        if left := len(part.train) - sum(at == i for at, _ in order):
            why = "as the others of the mixture are used up"
            notes.append(f"{part.name}: {left:,} rows are not used, {why}")
    return Data(
        Mixture(tuple(part.train for part in parts), tuple(order)),
        Mixture(tuple(tests), rows) if tests else None,
        first.collate,
        first.labels,
        tuple(notes),
        first.kind,
        " + ".join(part.name for part in parts),
        [{**part.options, "weight": weight} for part, weight in zip(parts, weights)],
        each_once(part.license for part in parts),
        each_once(part.source for part in parts),
        first.processor,
        tuple(source for part in parts for source in part.sources),
    )


def _options(data: Data) -> Any:
    """What tells one way to make batches from another: functions are equal by their options."""
    collate = data.collate
    return getattr(collate, "func", collate), getattr(collate, "keywords", None)


def each_once(words: Iterable[str], between: str = "; ") -> str:
    """Words that are not empty, each once and in order."""
    return between.join(dict.fromkeys(word for word in words if word))
