"""Finished statistics, one file per block."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modwright.calibration.disk import writing
from modwright.core.errors import Refused

__all__ = ["Statistics"]


class Statistics:
    """What a walk collected: block index -> dict of tensors, read from disk when asked for.

    Attributes:
        recipe: data and collectors that the numbers come from.
        directory: where the files are. Without one of the user's, a temporary directory that goes
            with this object.
        before_reading: called before a block's file is read.
    """

    def __init__(
        self,
        num_blocks: int,
        recipe: dict[str, Any],
        directory: Path | None,
        *,
        mine: bool = True,
        before_reading: Callable[[], None] = lambda: None,
    ) -> None:
        """``mine`` is False where another process writes the files."""
        self.num_blocks, self.recipe = num_blocks, recipe
        self.before_reading = before_reading
        if directory is None:
            held = tempfile.TemporaryDirectory(prefix="modwright-")
            self._finalizer = weakref.finalize(self, held.cleanup)
            self.directory = Path(held.name)
        else:
            self.directory = directory
        if mine:
            with writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                self._claim()

    def _claim(self) -> None:
        """A directory serves one walk; another's leftovers are refused, not mixed in."""
        path = self.directory / "walk.json"
        told = json.dumps(self.recipe, sort_keys=True, indent=1)
        if path.exists() and path.read_text() != told:
            raise Refused(
                f"{self.directory} holds statistics of another model, data or method; "
                "choose another directory or delete it"
            )
        partial = path.with_suffix(".partial")
        partial.write_text(told)
        partial.replace(path)

    def path(self, index: int) -> Path:
        return self.directory / f"block-{index:04d}.safetensors"

    def done(self, index: int) -> bool:
        return self.path(index).exists()

    def store(self, index: int, values: dict[str, Tensor]) -> None:
        """Writes a block's statistics, whole or not at all."""
        partial = self.directory / f"block-{index:04d}.partial"
        with writing(self.directory):
            save_file({name: value.contiguous() for name, value in values.items()}, partial)
            partial.replace(self.path(index))

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_blocks:
            raise IndexError(index)
        self.before_reading()
        values: dict[str, Tensor] = load_file(self.path(index))
        return values

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(self.num_blocks))

    def column(self, name: str) -> list[float]:
        """One number per block; NaN where the block has none."""
        nan = torch.tensor(torch.nan)
        return [float(values.get(name, nan)) for values in self]
