"""The idx files of MNIST, Fashion-MNIST and sets of their form."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.reading import first_bytes

__all__ = ["idx_arrays", "is_idx_folder", "read_idx"]

# Type codes of idx files; the numbers in them are big-endian.
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_LONGEST_IDX = 2**31
_FASHION: tuple[str, ...] = ("t-shirt", "trouser", "pullover", "dress", "coat")
_FASHION += ("sandal", "shirt", "sneaker", "bag", "ankle boot")
# How often each label stands in the training labels of a set -> the names of its labels.
_KNOWN = {
    (6000,) * 10: _FASHION,
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949): tuple("0123456789"),
}


def read_idx(path: str | Path) -> Tensor:
    """The numbers of an idx file, the format of MNIST and Fashion-MNIST; gzipped or not."""
    path = Path(path)
    try:
        packed = first_bytes(path, 2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            zero, kind, axes = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
            length = math.prod(shape) * np.dtype(_IDX_TYPES[kind]).itemsize
            if length > _LONGEST_IDX:
                raise CheckpointError(f"{path} says {shape}, more than {_LONGEST_IDX:,} bytes")
            # A packed file may hold far more than it says; one byte more is enough to know.
            data = stream.read(length + 1)
        if zero:
            raise ValueError
        numbers = np.frombuffer(data, _IDX_TYPES[kind]).reshape(shape)
    except (struct.error, KeyError, ValueError, EOFError, gzip.BadGzipFile, zlib.error):
        raise CheckpointError(f"{path} is no whole idx file") from None
    return torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("=")))


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds such files, be it one of them."""
    return any(folder.glob("*-idx[13]-ubyte*"))


def idx_arrays(
    folder: Path, classes: Sequence[str] | None = None
) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Images (N, 1, h, w) up to 255 and labels (N,) of both splits, and the names of the labels."""
    if classes is None:
        _present(folder, "train-images-idx3-ubyte")
        labels = read_idx(_present(folder, "train-labels-idx1-ubyte"))
        counts = tuple(labels.flatten().long().bincount().tolist())
        if counts not in _KNOWN:
            raise InvalidInputError(
                f"{folder} is neither MNIST nor Fashion-MNIST; name its {len(counts)} labels with "
                "`classes`, such as classes: [cat, dog]"
            )
        classes = _KNOWN[counts]
    found = []
    for start in ("train", "t10k"):
        images = read_idx(_present(folder, f"{start}-images-idx3-ubyte"))
        labels = read_idx(_present(folder, f"{start}-labels-idx1-ubyte"))
        if len(images) != len(labels):
            raise InvalidInputError(
                f"{folder}: {len(images)} images, but {len(labels)} labels ({start})"
            )
        if int(labels.max()) >= len(classes):
            raise InvalidInputError(
                f"{folder}: label {int(labels.max())}, but {len(classes)} names; `classes` names "
                f"labels 0 to {int(labels.max())}"
            )
        found.append((images[:, None], labels.long()))
    return found, tuple(classes)


def _present(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise CheckpointError(f"{folder} has no {name} or {name}.gz")
