"""Swin and Swin V2 of transformers: attention in windows that move from block to block."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.staged import StagedFamily
from modwright.anatomy.families.table import paths
from modwright.anatomy.views import Layout

__all__ = ["OlderSwin", "Swin", "SwinV2"]

_LISTED = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
_TABLE = "its position bias has numbers for each head"


@register_family
class Swin(StagedFamily):
    """Norms before the sublayers (arXiv 2103.14030)."""

    name = "swin"
    model_types: ClassVar[tuple[str, ...]] = ("swin",)
    blocker = _TABLE
    outer = {
        "embed": "embeddings.patch_embeddings.projection",
        "embed_norm": "embeddings.norm",
        "positions": "embeddings",
        "blocks": "encoder.layers",
        "final_norm": "layernorm",
    }
    block = {
        **paths("attention", "attention", "layernorm_before", **{r: f"{r}_proj" for r in "qkvo"}),
        **paths("mlp", "mlp", "layernorm_after", up="fc1", down="fc2"),
    }
    state: ClassVar[tuple[str, ...]] = ("window_size", "shift_size")

    def fitting(self, model: nn.Module) -> Family:
        older = any(path.endswith("attention.self") for path, _ in model.named_modules())
        return (OlderSwin if older else type(self))(self.config, model)


class OlderSwin(Swin):
    """The tree of transformers 4 and of the first versions 5."""

    block = {
        **paths("attention", "attention", "layernorm_before", **_LISTED),
        **paths("mlp", "intermediate", "layernorm_after", up="dense"),
        "mlp.down": "output.dense",
    }
    beside = {"mlp": ("output.dense",)}

    def fitting(self, model: nn.Module) -> Family:
        return type(self)(self.config, model)


@register_family
class SwinV2(OlderSwin):
    """Norms of what the sublayers return, and scores that are scaled cosines (arXiv 2111.09883)."""

    name = "swinv2"
    model_types = ("swinv2",)
    blocker = f"its scores are cosines with a scale for each head, and {_TABLE}"
    state = ()

    def layout(self, block: Any) -> Layout:
        return "res-post"
