"""What every dataset is: rows of tensors in splits, how they are collated, and what is said of it.

Axes: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError

__all__ = ["IGNORED", "Collate", "Data", "Rows", "Split", "TensorRows", "pad_rows", "stack_rows"]

Rows = Mapping[str, Tensor]
Collate = Callable[[Sequence[Rows]], dict[str, Any]]

IGNORED = -100
"""The label of a token that is no target."""


class Split(Protocol):
    """Rows by number, as transformers' Trainer takes them.

    A split that changes from epoch to epoch has ``set_epoch(epoch)``; one that does not want all
    its rows read for a digest has ``digest()``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Rows: ...


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Rows that lie in memory: each tensor holds one row after the other along its first axis.

    Example:
        >>> rows = TensorRows({"input_ids": torch.arange(6).view(3, 2)})
        >>> len(rows), rows[1]["input_ids"].tolist()
        (3, [2, 3])
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def digest(self) -> str:
        """Of names, shapes and numbers."""
        return _digest_of(self.tensors)


def stack_rows(rows: Sequence[Rows]) -> dict[str, Tensor]:
    """A batch of rows whose tensors have one shape: each stacked along a new first axis.

    Example:
        >>> stack_rows([{"labels": torch.tensor(1)}, {"labels": torch.tensor(2)}])
        {'labels': tensor([1, 2])}
    """
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def pad_rows(
    rows: Sequence[Rows], fill: Mapping[str, int], mask: str | None = "attention_mask"
) -> dict[str, Tensor]:
    """A batch of rows of tokens of unequal length, filled up at the right.

    Args:
        rows: each tensor (T,), all of a row equally long.
        fill: for each tensor what stands behind its end; 0 where it is not named.
        mask: what (B, T) of ones at real tokens is called; None adds none.

    Example:
        >>> rows = [{"labels": torch.tensor([5, 6])}, {"labels": torch.tensor([7])}]
        >>> pad_rows(rows, {"labels": IGNORED})["labels"].tolist()
        [[5, 6], [7, -100]]
    """
    batch = {
        name: pad_sequence([row[name] for row in rows], True, fill.get(name, 0)) for name in rows[0]
    }
    if mask is not None:
        ones = [torch.ones_like(next(iter(row.values()))) for row in rows]
        batch[mask] = pad_sequence(ones, True, 0)
    return batch


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset, ready to be learned from or measured on.

    Attributes:
        train: rows to learn from.
        test: rows to measure on; None where there are none.
        collate: makes a batch of rows.
        labels: names of the classes, in order; empty where there are none.
        notes: sentences on what was left out, and how the splits were made.
        kind: the key of a recipe that names it.
        name: of the dataset, or the path that was read.
        options: the key ``data`` of a recipe with every default written out.
        license: of the data; empty where it is not known.
        source: where the data comes from, in a few words.
        sources: the SHA-256 of each whole text that rows are cut from, where they are.
        processor: what a model that learns from it is saved with as ``preprocessor_config.json``;
            empty where there is no image processor that does the same.

    Example:
        >>> data = Data(TensorRows({"labels": torch.arange(4)}), name="four", license="CC0-1.0")
        >>> data.describe()
        'four: 4 rows to learn from, CC0-1.0'
    """

    train: Split
    test: Split | None = None
    collate: Collate = stack_rows
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = ""
    name: str = ""
    options: Any = field(default_factory=dict)
    license: str = ""
    source: str = ""
    processor: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Its splits by name."""
        return {"train": self.train, **({} if self.test is None else {"test": self.test})}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all rows and of the names of the classes; reads what is read lazily."""
        parts = [f"{name} {_digest(split)}" for name, split in self.splits.items()]
        return sha256_of(*parts, list(self.labels))

    def facts(self) -> dict[str, Any]:
        """What reports and cards hold of it, as JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "rows": {name: len(split) for name, split in self.splits.items()},
            "labels": list(self.labels),
            "license": self.license,
            "source": self.source,
            "notes": list(self.notes),
            "options": self.options,
            "sha256": self.digest,
        }

    def describe(self) -> str:
        """One line for reports and logs."""
        said = [f"{len(self.train):,} rows to learn from"]
        if self.test is not None:
            said.append(f"{len(self.test):,} to measure on")
        if self.labels:
            said.append(f"{len(self.labels)} classes")
        said += [word for word in (self.source, self.license) if word]
        return f"{self.name}: {', '.join(said)}"

    def batches(
        self, split: str = "train", batch_size: int = 8, rows: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Batches of the first rows of a split, in order; the last may be smaller.

        Raises:
            InvalidInputError: there is no such split, or it has fewer rows.
        """
        found = self.splits.get(split)
        count = 0 if found is None else len(found) if rows is None else rows
        if found is None or not 1 <= count <= len(found):
            has = 0 if found is None else len(found)
            raise InvalidInputError(f"{self.name} has {has} rows of {split}, not {rows or 'any'}")
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            yield self.collate([found[index] for index in range(start, stop)])


def _digest(split: Any) -> str:
    if hasattr(split, "digest"):
        return str(split.digest())
    return sha256_of(*(_digest_of(split[index]) for index in range(len(split))))


def _digest_of(tensors: Rows) -> str:
    parts: list[str | Tensor] = []
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor]
    return sha256_of(*parts)
