"""Names and shapes of a model's tensors in the layouts of other libraries, both ways.

A layout is a list of rules: this module there is that module here. A rule renames whole components
of a name, never parts of words, and the most specific rule that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Concat", "Converted", "Rename", "StateDictConverter", "same"]

Change = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    """As it is."""
    return tensor


@dataclass(frozen=True)
class Rename:
    """A module or a tensor, under its two names.

    Attributes:
        theirs: path in the other layout.
        ours: path here.
        to_ours: what is done to each tensor on the way here.
        to_theirs: what is done on the way back.
    """

    theirs: str
    ours: str
    to_ours: Change = same
    to_theirs: Change = same


@dataclass(frozen=True)
class Concat:
    """Modules of equal size there whose tensors are the rows of one module's here.

    Attributes:
        theirs: paths in the other layout, in the order of the rows.
        ours: path here.
    """

    theirs: tuple[str, ...]
    ours: str


@dataclass(frozen=True)
class Converted:
    """The outcome of a renaming.

    Attributes:
        tensors: under their new names.
        unexpected: names that no rule knows.
    """

    tensors: dict[str, Tensor]
    unexpected: list[str]


@dataclass(frozen=True)
class StateDictConverter:
    """One layout of one model.

    Attributes:
        rules: all modules and tensors.
        ignored: paths of the other layout that hold nothing a model here needs.
        aliases: further names there of tensors that are shared: name -> the first name.
        stacks: modules there that are one here.
    """

    rules: tuple[Rename, ...]
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None
    stacks: tuple[Concat, ...] = ()

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Converted:
        """Renames a state dict of the other layout.

        Raises:
            ValueError: two names of one shared tensor hold different numbers.
        """
        rules = {rule.theirs: rule for rule in self.rules}
        places = {path: stack for stack in self.stacks for path in stack.theirs}
        rows: dict[str, dict[int, Tensor]] = {}
        found: dict[str, Tensor] = {}
        unexpected = []
        for name, tensor in tensors.items():
            if _longest(name, self.ignored) is not None:
                continue
            first = self._first_name(name)
            if first != name:
                if first in tensors and not tensors[first].equal(tensor):
                    raise ValueError(f"{name} and {first} are one tensor, but hold other numbers")
                name = first
            path = _longest(name, places)
            if path is not None:
                stack = places[path]
                whole = rows.setdefault(stack.ours + name[len(path) :], {})
                whole[stack.theirs.index(path)] = tensor
                continue
            path = _longest(name, rules)
            if path is None:
                unexpected.append(name)
                continue
            rule = rules[path]
            found[rule.ours + name[len(path) :]] = rule.to_ours(tensor)
        counts = {stack.ours: len(stack.theirs) for stack in self.stacks}
        for name, whole in rows.items():  # one that lacks a part is missing as a whole
            if len(whole) == counts[_longest(name, counts) or ""]:
                found[name] = torch.cat([whole[index] for index in sorted(whole)])
        return Converted(found, unexpected)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> Converted:
        """Renames a state dict of ours; shared tensors come under all of their names."""
        rules = {rule.ours: rule for rule in self.rules}
        stacks = {stack.ours: stack.theirs for stack in self.stacks}
        found: dict[str, Tensor] = {}
        unexpected = []
        for name, tensor in tensors.items():
            path = _longest(name, stacks)
            if path is not None:
                pieces = tensor.chunk(len(stacks[path]))
                for theirs, rows in zip(stacks[path], pieces):
                    found[theirs + name[len(path) :]] = rows.clone()
                continue
            path = _longest(name, rules)
            if path is None:
                unexpected.append(name)
                continue
            rule = rules[path]
            found[rule.theirs + name[len(path) :]] = rule.to_theirs(tensor).contiguous()
        for alias, first in (self.aliases or {}).items():
            for name in [n for n in found if n == first or n.startswith(f"{first}.")]:
                found[alias + name[len(first) :]] = found[name]
        return Converted(found, unexpected)

    def _first_name(self, name: str) -> str:
        path = _longest(name, self.aliases or {})
        return name if path is None else (self.aliases or {})[path] + name[len(path) :]


def _longest(name: str, paths: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """The longest path that is ``name`` or stands before one of its components."""
    while name not in paths:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name
