"""ViT of transformers: images in patches, a class token, pre-norm blocks without a causal mask.

Two module trees are in use. The older one keeps the output map of an attention, and the second map
of an MLP, in modules beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.inputs import Images
from modwright.anatomy.projection import Projection
from modwright.anatomy.views import Part, PatchEmbedding
from modwright.nn import AttentionShape

__all__ = ["OlderVit", "Vit"]


@register_family
class Vit(Family):
    name = "vit"
    model_types = ("vit",)
    outer = {
        "embed": "embeddings.patch_embeddings.projection",
        "positions": "embeddings",
        "blocks": "layers",
        "final_norm": "layernorm",
    }
    block = {
        "attention": "attention",
        "attention.q": "attention.q_proj",
        "attention.k": "attention.k_proj",
        "attention.v": "attention.v_proj",
        "attention.o": "attention.o_proj",
        "attention_norm": "layernorm_before",
        "mlp": "mlp",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "mlp_norm": "layernorm_after",
    }
    presets = {
        "tiny-vit": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 4,
        }
    }

    def fitting(self, model: nn.Module) -> Family:
        older = hasattr(self.backbone(model), "encoder")
        return OlderVit(self.config) if older else self

    def is_causal(self) -> bool:
        return False

    def inputs(self) -> Images:
        """Patches and the class token."""
        config = self.config
        return Images(config.num_channels, _pair(config.image_size), _pair(config.patch_size), 1)

    def pools(self, model: nn.Module) -> bool:
        """Heads read the class token, with a pooler or without."""
        return True

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        """The class token, and a mask token where there is one, lie with the positions."""
        parts = super().read_outer(model)
        module = self.backbone(model).get_submodule(self.outer["embed"])
        return {**parts, "embed": PatchEmbedding(module, "embed", self.inputs().patches)}

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        own = {"head_dim": module.head_dim, "dropout": float(module.attention_dropout)}
        return super().attention_shape(module, projections, **own, **given)


class OlderVit(Vit):
    """The module tree of transformers 4 and of the first versions 5."""

    outer = {**Vit.outer, "blocks": "encoder.layer"}
    block = {
        "attention": "attention.attention",
        "attention.q": "attention.attention.query",
        "attention.k": "attention.attention.key",
        "attention.v": "attention.attention.value",
        "attention.o": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "mlp": "intermediate",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp_norm": "layernorm_after",
    }
    beside = {"mlp": ("output.dense",)}
    presets = {}

    def fitting(self, model: nn.Module) -> Family:
        return self

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        own = {"head_dim": module.attention_head_size, "dropout": float(module.dropout_prob)}
        return Family.attention_shape(self, module, projections, **own, **given)


def _pair(size: Any) -> tuple[int, int]:
    """Height and width, where a config may give one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
