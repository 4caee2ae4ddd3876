"""Names in the authors' repository of T2T-ViT, yitu-opensource/T2T-ViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modwright.models.state_dict_converter import Rename, StateDictConverter

__all__ = ["official_names"]


def _swap_thirds(tensor: Tensor) -> Tensor:
    """Rows of keys, queries, values -> rows of queries, keys, values, and back."""
    first, second, third = tensor.chunk(3)
    return torch.cat((second, first, third))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _one_hook_point(tensor: Tensor) -> Tensor:
    return tensor[:, None, None]


def _renamed(names: dict[str, str], theirs: str, ours: str) -> list[Rename]:
    return [Rename(f"{theirs}.{there}", f"{ours}.{here}") for here, there in names.items()]


_SAME = {name: name for name in ("norm1", "norm2")}
_MLP = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_PERFORMER = {
    **_SAME,
    "attention.proj": "proj",
    "attention.features": "w",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_TRANSFORMER = {
    **_SAME,
    **_MLP,
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
}


def _performer_names() -> list[Rename]:
    found = [Rename("tokens_to_token.project", "stem.project")]
    for n in range(2):
        theirs, ours = f"tokens_to_token.attention{n + 1}", f"stem.layers.{n}"
        found += _renamed(_PERFORMER, theirs, ours)
        swapped = (f"{theirs}.kqv", f"{ours}.attention.qkv")
        found.append(Rename(*swapped, to_ours=_swap_thirds, to_theirs=_swap_thirds))
    return found


def _transformer_names() -> list[Rename]:
    found = [Rename("tokens_to_token.project", "stem.project")]
    for n in range(2):
        found += _renamed(_TRANSFORMER, f"tokens_to_token.attention{n + 1}", f"stem.layers.{n}")
    return found


def _convolution_names() -> list[Rename]:
    theirs = {"conv0": "soft_split0", "conv1": "soft_split1", "conv2": "project"}
    return _renamed(theirs, "tokens_to_token", "stem")


def _patch_names() -> list[Rename]:
    return [Rename("patch_embed.proj", "stem.conv0")]


_STEM_NAMES: dict[str, Callable[[], list[Rename]]] = {
    "performer": _performer_names,
    "transformer": _transformer_names,
    "convolution": _convolution_names,
    "patch": _patch_names,
}

_BLOCK = {**_SAME, **_MLP, "mixer.qkv": "attn.qkv", "mixer.proj": "attn.proj"}
_BLOCK_NAMES: dict[str, dict[str, str]] = {
    "plain": _BLOCK,
    "squeeze_excite": {
        **_BLOCK,
        "mixer.gate.fc1": "attn.se_layer.fc.0",
        "mixer.gate.fc2": "attn.se_layer.fc.2",
    },
    "ghost": {
        **_SAME,
        **_MLP,
        "mixer.proj": "attn.proj",
        **{f"mixer.{map_}.primary": f"attn.{map_}" for map_ in "qkv"},
    },
    "dense": {
        **{f"block.{here}": there for here, there in _BLOCK.items()},
        "grow": "dense_linear",
        "linear": "linear",
    },
}
_CENTER_ONLY = {
    "ghost": {
        **{f"mixer.{map_}.cheap": f"attn.cheap_operation_{map_}" for map_ in "qkv"},
        "mlp.cheap1": "mlp.cheap_operation2",
        "mlp.cheap2": "mlp.cheap_operation3",
    }
}


def official_names(config: Any) -> StateDictConverter:
    rules = _STEM_NAMES[config.stem]()
    rules += [Rename("cls_token", "prefix.cls_token"), Rename("pos_embed", "positions.table")]
    count = config.depths
    if config.block_type == "dense":
        count = sum(config.dense_groups) + len(config.dense_groups) - 1
    for b in range(count):
        block = f"blocks.{b}"
        rules += _renamed(_BLOCK_NAMES[config.block_type], block, block)
        for here, there in _CENTER_ONLY.get(config.block_type, {}).items():
            rules.append(Rename(f"{block}.{there}", f"{block}.{here}", _flat, _one_hook_point))
    rules += [Rename("norm", "norm"), Rename("head", "head.fc")]
    return StateDictConverter(tuple(rules))
