"""Where the parts of an edited model stand, spelled out: module paths, part names, cache slots."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modwright.anatomy.families import family_of
from modwright.core.errors import ModwrightError
from modwright.edits.edit import split_address
from modwright.edits.remodeled import base_class, edits_of
from modwright.edits.replay import placements, replay

__all__ = ["Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """What a stock model must have put into it to become an edited one.

    Attributes:
        parts: (module path, name of a registered part, arguments), in the order of placing. Paths
            begin with the prefix of the backbone, also where the model is the bare backbone.
        slots: module path of each attention that owns a key/value cache slot -> the slot.
        attentions: module path of what stands for an attention that was replaced -> its layer.
        layers: layer -> config fields that differ there, as a checkpoint tells them.
        resolved: layer -> config fields that differ there, as the model's cache reads them.
        kv_sharing_modes: one word or None for each cache slot; None for all where the config has
            no such property.
    """

    parts: tuple[tuple[str, str, dict[str, Any]], ...]
    slots: dict[str, int]
    attentions: dict[str, int]
    layers: dict[int, dict[str, Any]]
    resolved: dict[int, dict[str, Any]]
    kv_sharing_modes: list[str | None] | None

    @property
    def part_names(self) -> tuple[str, ...]:
        """The registered parts that it uses, each once, sorted."""
        return tuple(sorted({name for _, name, _ in self.parts}))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a config."""
        return {
            "parts": [[path, name, dict(kwargs)] for path, name, kwargs in self.parts],
            "slots": dict(self.slots),
            "attentions": dict(self.attentions),
            "layers": {str(index): entry for index, entry in self.layers.items()},
            "resolved": {str(index): entry for index, entry in self.resolved.items()},
            "kv_sharing_modes": self.kv_sharing_modes,
        }


def layout_of(model: Any) -> Layout:
    """Resolves the edits of a remodeled model to places.

    The edits are replayed on a model without weights, and what was placed is noted. The result is
    compared with the live model, module by module.

    Raises:
        ModwrightError: the live model is not what its edits say.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, remove
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> plan = Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention))
        >>> layout = layout_of(modwright.apply(anatomy.model, plan).model)
        >>> layout.parts[0]
        ('model.layers.0.self_attn', 'absent_attention', {})
        >>> layout.slots["model.layers.1.self_attn"]
        0
    """
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        stock: Any = base_class(type(model))(config)
    family = family_of(config, stock)
    layers, blocks = family.layers(stock), family.blocks_path(stock)
    bare = "" if hasattr(stock, stock.base_model_prefix) else f"{stock.base_model_prefix}."
    parts: list[tuple[str, str, dict[str, Any]]] = []
    for edit in sorted(edits_of(config), key=lambda e: (e.path.count("."), e.path)):
        index, _ = split_address(edit.path)
        holder = stock if index is None else layers[index]
        prefix = bare if index is None else f"{bare}{blocks}.{index}."
        for path, name, kwargs in placements(family, holder, edit):
            parts.append((prefix + path, name, dict(kwargs)))
        with torch.device("meta"):
            replay(stock, family, [edit])
    _check_same(model, stock)
    owners = {
        id(owner) for block in layers if (owner := family.cache_layer_owner(block)) is not None
    }
    slots = {
        bare + path: int(module.layer_idx)
        for path, module in stock.named_modules()
        if id(module) in owners
    }
    modes = getattr(config, "kv_sharing_modes", None)
    return Layout(
        tuple(parts),
        slots,
        _replaced_attentions(config, f"{bare}{blocks}", family.block["attention"]),
        dict(config.layer_overrides()),
        _resolved(config),
        None if modes is None else list(modes),
    )


def _replaced_attentions(config: Any, blocks: str, attention: str) -> dict[str, int]:
    """Path of each attention that an edit replaces -> its layer."""
    places = (split_address(edit.path) for edit in edits_of(config))
    return {
        f"{blocks}.{index}.{attention}": index
        for index, role in places
        if index is not None and role == "attention"
    }


def _resolved(config: Any) -> dict[int, dict[str, Any]]:
    """What each layer's own config has beside, or in place of, the model's."""
    common = config.__dict__
    differing = {
        index: {
            name: value
            for name, value in layer.__dict__.items()
            if name not in common or common[name] != value
        }
        for index, layer in enumerate(config.per_layer_config)
    }
    return {index: entry for index, entry in differing.items() if entry}


def _check_same(live: nn.Module, built: nn.Module) -> None:
    for found, wanted in zip(_outline(live), _outline(built), strict=True):
        if found != wanted:
            raise ModwrightError(
                f"the model is not what its edits say: {found} stands where {wanted} should"
            )


def _outline(model: nn.Module) -> list[tuple[str, str, tuple[tuple[str, tuple[int, ...]], ...]]]:
    """Every module below the top: path, class, shapes."""
    return [
        (
            path,
            type(module).__name__,
            tuple((name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)),
        )
        for path, module in model.named_modules()
        if path
    ]
