"""Labeled images in memory, for tests that look at all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from modwright.data import Data, TensorRows, make_data, stack_rows


def noise(pixels: Tensor, labels: Tensor, classes: Sequence[str]) -> Data:
    """Images of one's own, nothing of which is held out."""
    rows = TensorRows({"pixel_values": pixels, "labels": labels})
    return Data(rows, labels=tuple(classes), name="noise")


@cache
def images(name: str, image_size: int = 32) -> Data:
    """A dataset or a folder, decoded."""
    data = make_data({"images": name, "image_size": image_size})
    return replace(data, train=_decoded(data.train), test=_decoded(data.test))


def digits(image_size: int = 32) -> Data:
    """scikit-learn's 1,297 to learn from and 500 to measure on."""
    return images("digits", image_size)


def first(data: Data, train: int, test: int = 0) -> Data:
    """The first images to learn from and to measure on; none of the latter where that is 0."""
    return replace(
        data,
        train=_taken(data.train, train),
        test=_taken(data.test, test) if test else None,
    )


@dataclass
class FirstRows:
    """The first rows of a split that changes from epoch to epoch."""

    rows: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)


def augmented(name: str, augment: Sequence[Any], train: int, test: int) -> Data:
    """The first images, those to learn from drawn anew in every epoch."""
    data = make_data({"images": name, "image_size": 32, "augment": list(augment)})
    plain = first(images(name), train, test)
    return replace(data, train=FirstRows(data.train, train), test=plain.test)


def pixels(rows: Any) -> Tensor:
    """(N, C, H, W)."""
    return rows.tensors["pixel_values"]


def _decoded(rows: Any) -> TensorRows:
    return TensorRows(stack_rows([rows[index] for index in range(len(rows))]))


def _taken(rows: Any, count: int) -> TensorRows:
    assert count <= len(rows)
    return TensorRows({name: tensor[:count] for name, tensor in rows.tensors.items()})
