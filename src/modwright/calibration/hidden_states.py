"""Residual streams at a block boundary, kept in a file and mapped into memory.

A mapped file lets the system take the memory back when it is short, and is there already when a
stopped run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from modwright.core.files import writing

__all__ = ["HiddenStatesFile"]


class HiddenStatesFile:
    """One tensor per batch, one after the other in a file; perhaps of no batch at all."""

    def __init__(
        self, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, fresh: bool
    ) -> None:
        self.path, self.shapes, self.dtype = path, [tuple(s) for s in shapes], dtype
        sizes = [prod(shape) for shape in self.shapes]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
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

    @classmethod
    def create(
        cls, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
    ) -> HiddenStatesFile:
        return cls(path, shapes, dtype, fresh=True)

    @classmethod
    def reopen(
        cls, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
    ) -> HiddenStatesFile:
        return cls(path, shapes, dtype, fresh=False)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, batch: int) -> Tensor:
        start, end = self._starts[batch], self._starts[batch + 1]
        return self._flat[start:end].view(self.shapes[batch])

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
        if not size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        piece = bytes(1 << 20)
        for start in range(0, size, len(piece)):
            file.write(piece[: min(len(piece), size - start)])
