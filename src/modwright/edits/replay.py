"""Turns a freshly built stock model into the edited one, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from modwright.anatomy.families.family import Family, Placement
from modwright.edits.edit import Edit, Remove, split_address
from modwright.edits.registry import build_part
from modwright.edits.slots import number_slots
from modwright.errors import Refused
from modwright.nn import GroupedAttention

__all__ = ["replay"]


def replay(model: nn.Module, family: Family, edits: Sequence[Edit]) -> None:
    """Places every edit's parts and numbers the cache slots.

    Outer parts come first, so an attention stands before a projection inside it is replaced. No
    step looks at weights: the model may be on the meta device.
    """
    layers = family.layers(model)
    for edit in sorted(edits, key=lambda e: (e.path.count("."), e.path)):
        index, role = split_address(edit.path)
        if not 0 <= index < len(layers):
            raise Refused(f"{edit.path}: the model has blocks 0 to {len(layers) - 1}")
        block = layers[index]
        for path, part, kwargs in _placements(family, block, role, edit):
            _set(block, path, build_part(part, model.config, kwargs))
    renumber(model, family)


def renumber(model: nn.Module, family: Family) -> None:
    """Numbers the cache slots of the attentions that are there."""
    owners = [(i, family.slot_owner(block)) for i, block in enumerate(family.layers(model))]
    number_slots([(i, owner) for i, owner in owners if owner is not None], model.config)


def _placements(family: Family, block: nn.Module, role: str, edit: Edit) -> list[Placement]:
    if isinstance(edit, Remove):
        return family.place_absent(role, edit.drop_norm)
    return family.place(block, role, edit.part, edit.kwargs)


def _set(block: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    holder: Any = block.get_submodule(parent) if parent else block
    old = getattr(holder, name)
    if isinstance(part, GroupedAttention):
        part.layer_idx = getattr(old, "layer_idx", None)
    part.train(old.training)
    setattr(holder, name, part)
