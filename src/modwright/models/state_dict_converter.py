"""Names and shapes of a model's tensors in the layouts of other libraries, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Converted", "Names", "StateDictConverter", "same", "under"]

Change = Callable[[Tensor], Tensor]
Names = Mapping[Any, str]


def same(*names: str) -> dict[str, str]:
    """A table of parts that have one name in both layouts."""
    return {name: name for name in names}


def under(theirs: str, ours: str, names: Names) -> Names:
    """The table of a module's parts, the paths of the module put before them.

    Example:
        >>> under("layer.0", "blocks.0", {"out": "proj", ("q", "k"): "qk"})
        {'layer.0.out': 'blocks.0.proj', ('layer.0.q', 'layer.0.k'): 'blocks.0.qk'}
    """
    return {
        tuple(f"{theirs}.{one}" for one in there)
        if isinstance(there, tuple)
        else f"{theirs}.{there}": f"{ours}.{here}"
        for there, here in names.items()
    }


class Converted(NamedTuple):
    """Tensors under their new names, and the names that no rule knows."""

    tensors: dict[str, Tensor]
    unexpected: list[str]


@dataclass(frozen=True)
class StateDictConverter:
    """One layout of one model: a table of modules and tensors under their two names.

    A rule renames whole components of a name, never parts of words; the most specific is taken.

    Attributes:
        names: path there -> path here. A tuple of modules of equal size there is one here, which
            has their tensors' rows in this order.
        changes: path here -> what is done to each tensor on the way here, and on the way back.
        ignored: paths there that hold nothing a model here needs.
        aliases: further names there of tensors that are shared: name -> the first name.
    """

    names: Names
    changes: Mapping[str, tuple[Change, Change]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def _pairs(self) -> Iterable[tuple[tuple[str, ...], str]]:
        for theirs, ours in self.names.items():
            yield theirs if isinstance(theirs, tuple) else (theirs,), ours

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Converted:
        """Renames a state dict of the other layout.

        Raises:
            ValueError: two names of one shared tensor hold different numbers.
        """
        places = {
            path: (ours, index, len(paths))
            for paths, ours in self._pairs()
            for index, path in enumerate(paths)
        }
        parts: dict[str, dict[int, Tensor]] = {}
        found: dict[str, Tensor] = {}
        unexpected = []
        for name, tensor in tensors.items():
            if _longest(name, self.ignored) is not None:
                continue
            if (alias := _longest(name, self.aliases)) is not None:
                first = self.aliases[alias] + name[len(alias) :]
                if first in tensors and not tensors[first].equal(tensor):
                    raise ValueError(f"{name} and {first} are one tensor, but hold other numbers")
                name = first
            if (path := _longest(name, places)) is None:
                unexpected.append(name)
                continue
            ours, index, count = places[path]
            if ours in self.changes:
                tensor = self.changes[ours][0](tensor)
            own = ours + name[len(path) :]
            rows = parts.setdefault(own, {})
            rows[index] = tensor
            if len(rows) == count:  # one that lacks a part is missing as a whole
                found[own] = torch.cat([rows[at] for at in sorted(rows)]) if count > 1 else tensor
        return Converted(found, unexpected)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> Converted:
        """Renames a state dict of ours; shared tensors come under all of their names."""
        places = {ours: paths for paths, ours in self._pairs()}
        found: dict[str, Tensor] = {}
        unexpected = []
        for name, tensor in tensors.items():
            if (path := _longest(name, places)) is None:
                unexpected.append(name)
                continue
            if path in self.changes:
                tensor = self.changes[path][1](tensor)
            count = len(places[path])
            rows = [tensor.contiguous()] if count == 1 else [r.clone() for r in tensor.chunk(count)]
            found |= {there + name[len(path) :]: row for there, row in zip(places[path], rows)}
        for alias, first in self.aliases.items():
            for name in [n for n in found if n == first or n.startswith(f"{first}.")]:
                found[alias + name[len(first) :]] = found[name]
        return Converted(found, unexpected)


def _longest(name: str, paths: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """The longest path that is ``name`` or stands before one of its components."""
    while name not in paths:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name
