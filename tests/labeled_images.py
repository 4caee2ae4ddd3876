"""Labeled images in memory, for tests that look at all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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


def pixels(rows: Any) -> Tensor:
    """(N, C, H, W)."""
    return rows.tensors["pixel_values"]


def _decoded(rows: Any) -> TensorRows:
    return TensorRows(stack_rows([rows[index] for index in range(len(rows))]))


def _taken(rows: Any, count: int) -> TensorRows:
    assert count <= len(rows)
    return TensorRows({name: tensor[:count] for name, tensor in rows.tensors.items()})
