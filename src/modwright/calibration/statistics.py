"""Finished statistics, one file per block."""

from __future__ import annotations

import json
import math
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.files import write_file, writing

if TYPE_CHECKING:
    from modwright.calibration.collectors import Collector

__all__ = ["BlockStatistics", "Statistics", "qualified", "require_distinct"]


def qualified(collector: Collector, name: str) -> str:
    """What a collector's statistic is stored as: "grams/attention"."""
    return f"{_kind(collector.describe(), type(collector).__name__)}/{name}"


def _kind(told: Any, default: str) -> str:
    return str(told.get("collector", default) if isinstance(told, Mapping) else told)


def require_distinct(collectors: Iterable[Collector]) -> None:
    """Refuses a collector that is given twice, with the same options or others."""
    kinds = Counter(qualified(collector, "") for collector in collectors)
    for kind, count in kinds.items():
        if count > 1:
            raise InvalidInputError(
                f"the collector {kind[:-1]!r} is given {count} times; calibrate once for each"
            )


class BlockStatistics(Mapping[str, Tensor]):
    """The statistics of one block, by name.

    A name that one collector alone gives may stand without it: "gaps" for "stream gaps/gaps".

    Raises:
        InvalidInputError: a name that several collectors give.

    Example:
        >>> found = BlockStatistics({"grams/mlp": torch.eye(2), "similarity/mlp": torch.eye(1)})
        >>> sorted(found), found["grams/mlp"].shape[0]
        (['grams/mlp', 'similarity/mlp'], 2)
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self.stored = stored
        self._full: dict[str, list[str]] = {}
        for full in stored:
            self._full.setdefault(full.rpartition("/")[2], []).append(full)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.stored:
            return self.stored[name]
        bare = name.rpartition("/")[2]
        if name != bare:  # earlier files hold the names of one collector as they are
            return self.stored[bare]
        full = self._full[name]
        if len(full) > 1:
            raise InvalidInputError(
                f"several collectors give {name!r}; it is one of {', '.join(full)}"
            )
        return self.stored[full[0]]

    def __iter__(self) -> Iterator[str]:
        for name, full in self._full.items():
            yield from [name] if len(full) == 1 else full

    def __len__(self) -> int:
        return len(self.stored)


class Statistics:
    """What a walk collected: block index -> tensors by name, read from disk when asked for.

    ``recipe`` says which data and collectors the numbers come from. Without a ``directory`` of the
    user's the files are in a temporary one, which goes with this object.
    """

    def __init__(
        self, num_blocks: int, recipe: dict[str, Any], directory: Path | None, *, mine: bool = True
    ) -> None:
        """``mine`` is False where another process writes the files."""
        self.num_blocks, self.recipe = num_blocks, recipe
        if directory is None:
            held = tempfile.TemporaryDirectory(prefix="modwright-")
            self._finalizer = weakref.finalize(self, held.cleanup)
            directory = Path(held.name)
        self.directory = directory
        if mine:
            with writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                self._claim()

    def _claim(self) -> None:
        """A directory serves one walk; files of another one are refused, not mixed in."""
        path = self.directory / "walk.json"
        told = json.dumps(self.recipe, sort_keys=True, indent=1)
        if path.exists() and path.read_text() != told:
            raise InvalidInputError(
                f"{self.directory} holds statistics of another model, data or method; "
                "choose another directory or delete it"
            )
        write_file(path, told, kept_in=self.directory)

    def path(self, index: int) -> Path:
        return self.directory / f"block-{index:04d}.safetensors"

    def done(self, index: int) -> bool:
        return self.path(index).exists()

    def store(self, index: int, values: dict[str, Tensor]) -> None:
        """Writes a block's statistics, whole or not at all."""
        stored = {name: value.contiguous() for name, value in values.items()}
        write_file(self.path(index), partial(save_file, stored), kept_in=self.directory)

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> BlockStatistics:
        if not 0 <= index < self.num_blocks:
            raise IndexError(index)
        return BlockStatistics(load_file(self.path(index)))

    def __iter__(self) -> Iterator[BlockStatistics]:
        return (self[index] for index in range(self.num_blocks))

    @property
    def names(self) -> set[str]:
        """What was collected, in one block or another."""
        return {name for values in self for name in values}

    def __repr__(self) -> str:
        kinds = ", ".join(_kind(told, "?") for told in self.recipe.get("collectors", ()))
        return f"Statistics({self.num_blocks} blocks: {kinds or 'nothing'})"

    def column(self, name: str) -> list[float]:
        """One number per block; NaN where the block has none.

        Raises:
            InvalidInputError: no block has a statistic of this name, or it is more than one number.
        """
        found = [values.get(name) for values in self]
        if all(value is None for value in found):
            raise unknown_name("statistic", name, sorted(self.names))
        if any(value is not None and value.numel() != 1 for value in found):
            raise InvalidInputError(
                f"{name!r} is more than one number per block; read statistics[index]"
            )
        return [math.nan if value is None else float(value) for value in found]
