"""Residual streams at a block boundary, kept in a file and mapped into memory.

The system may take the memory of a mapped file back, and a stopped run finds the file there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from modwright.core.files import writing

__all__ = ["HiddenStatesFile"]


class HiddenStatesFile:
    """One tensor per batch, one after the other in a file; perhaps of no batch at all.

    ``fresh`` makes the file; else it is there.
    """

    def __init__(
        self, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, fresh: bool
    ) -> None:
        self.path, self.shapes = path, [tuple(shape) for shape in shapes]
        self._starts = [0, *accumulate(map(prod, self.shapes))]
        size = self._starts[-1]
        if fresh:
            with writing(path.parent):
                path.unlink(missing_ok=True)
                _reserve(path, size * dtype.itemsize)
        # A file of nothing cannot be mapped.
        self._flat = (
            torch.from_file(str(path), shared=True, size=size, dtype=dtype)
            if size
            else torch.empty(0, dtype=dtype)
        )

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, batch: int) -> Tensor:
        return self._flat[self._starts[batch] : self._starts[batch + 1]].view(self.shapes[batch])

    def __setitem__(self, batch: int, value: Tensor) -> None:
        self[batch].copy_(value)

    def rename(self, path: Path) -> None:
        """Gives the finished file its final name."""
        self.path.replace(path)
        self.path = path

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Takes the room on disk now: a full disk under a mapped file ends the process without a word.

    Where the system cannot reserve, the file is written full of zeros.
    """
    with path.open("wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        piece = bytes(1 << 20)
        for start in range(0, size, len(piece)):
            file.write(piece[: min(len(piece), size - start)])
