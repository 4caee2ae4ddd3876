"""Turns a freshly built stock model into the edited one, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from modwright.anatomy import Anatomy, Block
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError
from modwright.core.modes import set_mode
from modwright.edits.cache_layers import number_cache_layers
from modwright.edits.edit import Edit, Remove, State, split_address
from modwright.edits.registry import build_part
from modwright.nn import (
    FeedForward,
    GroupedAttention,
    Identity,
    Mixture,
    PlacedMixer,
    SkippedAttention,
    ZeroModule,
)
from modwright.nn.opaque import as_opaque

__all__ = ["num_removed", "preview", "renumber", "replay"]

_KNOWN = (
    ZeroModule,
    SkippedAttention,
    FeedForward,
    GroupedAttention,
    Mixture,
    Identity,
    PlacedMixer,
)
"""Sublayers that families read as what they are."""


def replay(model: nn.Module, family: Family, edits: Sequence[State]) -> None:
    """Places every edit's parts and numbers the cache slots.

    Outer parts come first, so an attention stands before a projection inside it is replaced. No
    step looks at weights: the model may be on the meta device.
    """
    layers = family.layers(model)
    for edit in sorted(edits, key=lambda e: (e.path.count("."), e.path)):
        index, role = split_address(edit.path)
        if index is not None and not 0 <= index < len(layers):
            raise InvalidInputError(f"{edit.path}: the model has blocks 0 to {len(layers) - 1}")
        holder = model if index is None else layers[index]
        for path, part, kwargs in _placements(family, holder, role, edit):
            current = holder.get_submodule(path)
            built = build_part(part, model.config, kwargs, current)
            if role in ("attention", "mlp") and part == getattr(edit, "part", None):
                built = _fit_to_block(built, current, family.pairs and role == "attention")
            _set(holder, path, built)
    renumber(model, family)


def _fit_to_block(part: nn.Module, current: nn.Module, paired: bool) -> nn.Module:
    """A sublayer of a kind that nobody here knows stands as a whole, as its host calls it."""
    return part if part is current or isinstance(part, _KNOWN) else as_opaque(part, paired)


@contextmanager
def preview(anatomy: Anatomy, edits: Sequence[Edit]) -> Iterator[Anatomy]:
    """The live model with some parts removed, for as long as the context is open.

    For scoring only: cache slots stay as they are. A removed block passes its input on. Afterwards
    the model is as before, whatever happened inside.
    """
    family, layers = anatomy.family, anatomy.family.layers(anatomy.model)
    undo: list[tuple[Any, str, nn.Module]] = []
    try:
        for edit in edits:
            index, role = split_address(edit.path)
            assert index is not None, "only blocks and what is in them can be removed"
            wanted = [role] if role else [r for r, _ in anatomy.blocks[index].sublayers()]
            for one in wanted:
                drop_norm = getattr(edit, "drop_norm", False) or not role
                for path, part, kwargs in family.place_absent(one, drop_norm):
                    parent, _, name = path.rpartition(".")
                    holder = layers[index].get_submodule(parent) if parent else layers[index]
                    undo.append((holder, name, getattr(holder, name)))
                    _set(layers[index], path, build_part(part, anatomy.config, kwargs))
        yield Anatomy(anatomy.model, family)
    finally:
        for holder, name, module in reversed(undo):
            setattr(holder, name, module)


def num_removed(anatomy: Anatomy, part: Block | Sublayer, drop_norm: bool = False) -> int:
    """How many parameters go with a part: also its norm, its gain, and all below a block's path.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> num_removed(anatomy, anatomy.blocks[0]) == anatomy.blocks[0].num_parameters
        True
    """
    index, role = split_address(part.address)
    assert index is not None
    if not role:
        gone = [anatomy.model.get_submodule(anatomy.family.layer_paths(anatomy.model)[index])]
    else:
        block = anatomy.blocks[index].module
        gone = [block.get_submodule(p) for p, *_ in anatomy.family.place_absent(role, drop_norm)]
    return sum(p.numel() for p in {p for module in gone for p in module.parameters()})


def renumber(model: nn.Module, family: Family) -> None:
    """Numbers the cache slots of the attentions that are there."""
    owners = [(i, family.cache_layer_owner(block)) for i, block in enumerate(family.layers(model))]
    number_cache_layers([(i, owner) for i, owner in owners if owner is not None], model.config)


def _placements(family: Family, holder: nn.Module, role: str, edit: State) -> list[Placement]:
    if isinstance(edit, Remove):
        return family.place_absent(role, edit.drop_norm)
    if split_address(edit.path)[0] is None:
        return family.place_outside(holder, role, edit.part, edit.kwargs)
    return family.place(holder, role, edit.part, edit.kwargs)


def _set(root: nn.Module, path: str, part: nn.Module) -> None:
    if part is root.get_submodule(path):
        return  # it was altered where it stands
    parent, _, name = path.rpartition(".")
    holder: Any = root.get_submodule(parent) if parent else root
    old = getattr(holder, name)
    if isinstance(part, GroupedAttention):
        part.layer_idx = getattr(old, "layer_idx", None)
    set_mode(part, old.training)
    setattr(holder, name, part)
