"""Turns a freshly built stock model into the edited one, in place.

Survivors take new key/value cache slots when attentions go: the mask builder and
``cache.get_seq_length()`` read the first slot of each kind. A slot that no attention fills is read
as "nothing seen yet", and decoding goes wrong without an error. So the survivors take the first
slots of their kind, and the cache is told which slots stay empty. States of recurrent components
take the slots that are left: one in the first slot would give masks the length of a cache that
grows, where beside it a static cache of keys has its full length.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import transformers.cache_utils
from torch import nn

from modwright.anatomy import Anatomy, Block
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.families.table import Convention
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError
from modwright.core.modes import set_mode
from modwright.core.options import shown
from modwright.edits.edit import Edit, Remove, Replace, State, split_address
from modwright.edits.hf_adapters import host, keeps_state, needs_grid
from modwright.edits.registry import KIND_AT, build_part, component_named
from modwright.edits.stock_parts import check_stock_tensors, has_stock_tensors, tensor_shapes
from modwright.nn.component import Component
from modwright.nn.placeholders import as_opaque

__all__ = ["cache_layers_of", "num_removed", "number_cache_layers", "number_states", "placements"]
__all__ += ["preview", "replay", "unfilled_cache_layers"]

_KNOWS_EMPTY_LAYERS = hasattr(transformers.cache_utils, "DummyLayer")
"""This transformers can be told of empty slots; then even the first slot may be one."""

_HOST = "host"
"""The argument of an edit that is told to the host of a component, not to the component."""

_TOLD_BEFORE = {"within": "mixer"}
"""What an edit may tell it, see :func:`modwright.edits.old_parts.converted`."""


def replay(model: nn.Module, family: Family, edits: Sequence[State]) -> None:
    """Places every edit's parts and numbers the cache slots of the attentions that are there.

    Outer parts come first, so an attention stands before a projection inside it is replaced. No
    step looks at weights: the model may be on the meta device.
    """
    layers = family.layers(model)
    for edit in sorted(edits, key=lambda e: (e.path.count("."), e.path)):
        index, role = split_address(edit.path)
        if index is not None and not 0 <= index < len(layers):
            raise InvalidInputError(f"{edit.path}: the model has blocks 0 to {len(layers) - 1}")
        holder = model if index is None else layers[index]
        stock = tensor_shapes(holder) if has_stock_tensors(edit, model.config) else None
        whole = KIND_AT.get(role) if isinstance(edit, Replace) else None
        for path, part, kwargs in placements(family, holder, edit):
            current = holder.get_submodule(path)
            told = kwargs.get(_HOST, {})
            given = {name: value for name, value in kwargs.items() if name != _HOST}
            built = build_part(part, model.config, given, current, whole)
            if whole and built is not current:
                known = {"pairs": family.pairs, **told}
                if family.convention == "modwright":
                    known["layout"] = "map" if family.axis(holder) == 1 else "tokens"
                component = component_named(part, whole)
                built = _adapted(built, component, role, family.convention, known)
            _set(holder, path, built)
            whole = None  # what else is placed stands beside it
        if stock is not None:
            check_stock_tensors(edit, stock, tensor_shapes(holder))
    owners = [(i, family.cache_layer_owner(block)) for i, block in enumerate(layers)]
    attentions = [(i, owner) for i, owner in owners if owner is not None]
    number_cache_layers(attentions, model.config)
    mixers = map(attrgetter(family.block["attention"]), layers)
    number_states(mixers, len(layers), {owner.layer_idx for _, owner in attentions})


def _adapted(
    built: nn.Module,
    component: Component | None,
    role: str,
    convention: Convention,
    told: dict[str, Any],
) -> nn.Module:
    """What stands as a whole, as its host calls it: a component, or what nobody here knows."""
    if component is None:
        known = getattr(built, "host_called", getattr(built, "follows_transformers", False))
        return built if known else as_opaque(built, told["pairs"] and role == "attention")
    return host(built, component, role, convention, told)


def placements(family: Family, holder: nn.Module, edit: State) -> list[Placement]:
    """What an edit puts where in the model, or in the block that its address names."""
    index, role = split_address(edit.path)
    if isinstance(edit, Remove):
        return family.place_absent(role, edit.drop_norm)
    if (told := edit.kwargs.get(_HOST, {})) not in ({}, _TOLD_BEFORE):
        raise InvalidInputError(
            f"{edit.path}: {_HOST!r} is no argument of a part; files of earlier versions tell the "
            f"host {_TOLD_BEFORE} by it, and not {shown(told)}"
        )
    place = family.place_outside if index is None else family.place
    return place(holder, role, edit.part, _with_grid(family, role, edit))


def _with_grid(family: Family, role: str, edit: Replace) -> dict[str, Any]:
    """The arguments of an edit, with the grid of the tokens where a component needs it and blocks
    do not tell it."""
    if (kind := KIND_AT.get(role)) is None:
        return edit.kwargs
    component = component_named(edit.part, kind)
    if component is None or not needs_grid(component) or (told := family.token_grid()) is None:
        return edit.kwargs
    grid, prefix = told
    known = {"grid": list(grid), "prefix": prefix}
    return {**edit.kwargs, _HOST: {**edit.kwargs.get(_HOST, {}), **known}}


@contextmanager
def preview(anatomy: Anatomy, edits: Sequence[Edit]) -> Iterator[Anatomy]:
    """The live model with some parts removed, for as long as the context is open.

    For scoring only: cache slots stay as they are. A removed block passes its input on.
    """
    family, layers = anatomy.family, anatomy.family.layers(anatomy.model)
    undo: list[tuple[Any, str, nn.Module]] = []
    try:
        for edit in edits:
            index, role = split_address(edit.path)
            assert index is not None, "only blocks and what is in them can be removed"
            drop_norm = getattr(edit, "drop_norm", False) or not role
            for one in [role] if role else [r for r, _ in anatomy.blocks[index].sublayers()]:
                for path, part, kwargs in family.place_absent(one, drop_norm):
                    new = build_part(part, anatomy.config, kwargs)
                    undo.append(_set(layers[index], path, new))
        yield Anatomy(anatomy.model, family)
    finally:
        for holder, name, module in reversed(undo):
            setattr(holder, name, module)


def num_removed(anatomy: Anatomy, part: Block | Sublayer, drop_norm: bool = False) -> int:
    """How many parameters go with a part: also its norm, its gain, and all below a block's path."""
    index, role = split_address(part.address)
    assert index is not None
    if not role:
        gone = [anatomy.model.get_submodule(anatomy.family.layer_paths(anatomy.model)[index])]
    else:
        block = anatomy.blocks[index].module
        gone = [block.get_submodule(p) for p, *_ in anatomy.family.place_absent(role, drop_norm)]
    return sum(p.numel() for p in {p for module in gone for p in module.parameters()})


def _set(root: nn.Module, path: str, part: Any) -> tuple[Any, str, nn.Module]:
    """Puts a part in place; says where, and what stood there."""
    parent, _, name = path.rpartition(".")
    holder: Any = root.get_submodule(parent)
    old = getattr(holder, name)
    if part is not old:  # else it was altered where it stands
        if getattr(part, "follows_transformers", False):
            part.layer_idx = getattr(old, "layer_idx", None)
        setattr(holder, name, set_mode(part, old.training))
    return holder, name, old


def cache_layers_of(layers: Sequence[int], types: Sequence[str] | None) -> list[int]:
    """The slot of each layer that has an attention.

    Layers of one type take the slots of that type in order, so each type's first slot is filled.

    Example:
        >>> cache_layers_of([2, 4, 5], ["full", "sliding", "full", "sliding", "full", "sliding"])
        [0, 2, 1]
    """
    if types is None:
        return list(range(len(layers)))
    free: dict[str, list[int]] = {}
    for slot, kind in enumerate(types):
        free.setdefault(kind, []).append(slot)
    if layers and types[0] not in {types[i] for i in layers} and not _KNOWS_EMPTY_LAYERS:
        raise InvalidInputError(
            f"all {types[0]} layers would go, but cache slot 0 is of that type and gives the "
            f"position; keep one of layers {free[types[0]]}, or use transformers 5.24 or newer"
        )
    taken = dict.fromkeys(free, 0)
    slots = []
    for index in layers:
        kind = types[index]
        slots.append(free[kind][taken[kind]])
        taken[kind] += 1
    return slots


def unfilled_cache_layers(
    layers: Sequence[int], types: Sequence[str] | None, count: int
) -> list[int]:
    """Which of ``count`` slots the cache must not look at.

    Without any attention the sliding ones: they alone do not tell their length or roll back. Never
    one of a stock recurrent layer: it has no length to tell, and a slot of another kind among them
    would be asked for one.
    """
    if layers:
        filled = set(cache_layers_of(layers, types))
    else:
        filled = {slot for slot in range(count) if types is None or "sliding" not in types[slot]}
    if types is not None:
        filled |= {slot for slot in range(count) if types[slot] == "linear_attention"}
    return [slot for slot in range(count) if slot not in filled] if filled else []


def number_cache_layers(layers: list[tuple[int, Any]], config: Any) -> None:
    """Gives each attention (its layer index, the module with ``layer_idx``) its slot, in place."""
    slots = cache_layers_of([index for index, _ in layers], getattr(config, "layer_types", None))
    for (_, module), slot in zip(layers, slots):
        module.layer_idx = slot


def number_states(mixers: Iterable[Any], count: int, taken: Container[Any]) -> None:
    """Gives each recurrent component among ``mixers`` a slot, in place: the next of ``count`` that
    no attention has taken."""
    free = iter([slot for slot in range(count) if slot not in taken])
    for mixer in filter(keeps_state, mixers):
        mixer.layer_idx = next(free)
