"""ViT of transformers: images in patches, a class token, pre-norm blocks without a causal mask."""

from __future__ import annotations

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import paths
from modwright.anatomy.inputs import Images, pair
from modwright.anatomy.views import Part, PatchEmbedding

__all__ = ["OlderVit", "Vit"]

_TINY = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


@register_family
class Vit(Family):
    name = "vit"
    model_types = ("vit",)
    causal = False
    outer = {
        "embed": "embeddings.patch_embeddings.projection",
        "positions": "embeddings",
        "blocks": "layers",
        "final_norm": "layernorm",
    }
    block = {
        **paths("attention", "attention", "layernorm_before", **{r: f"{r}_proj" for r in "qkvo"}),
        **paths("mlp", "mlp", "layernorm_after", up="fc1", down="fc2"),
    }
    shape_fields = {"head_dim": "head_dim", "dropout": "attention_dropout"}
    presets = {"tiny-vit": _TINY}

    def fitting(self, model: nn.Module) -> Family:
        older = hasattr(self.backbone(model), "encoder")
        return OlderVit(self.config) if older else self

    def inputs(self) -> Images:
        """Patches and the class token."""
        config = self.config
        return Images(config.num_channels, pair(config.image_size), pair(config.patch_size), 1)

    def pools(self, model: nn.Module) -> bool:
        """Heads read the class token, with a pooler or without."""
        return True

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        """The class token, and a mask token where there is one, lie with the positions."""
        parts = super().read_outer(model)
        module = self.backbone(model).get_submodule(self.outer["embed"])
        return {**parts, "embed": PatchEmbedding(module, "embed", self.inputs().patches)}


class OlderVit(Vit):
    """The tree of transformers 4 and of the first versions 5: two maps lie beside their modules."""

    outer = {**Vit.outer, "blocks": "encoder.layer"}
    block = {
        **paths(
            "attention", "attention.attention", "layernorm_before", q="query", k="key", v="value"
        ),
        "attention.o": "attention.output.dense",
        **paths("mlp", "intermediate", "layernorm_after", up="dense"),
        "mlp.down": "output.dense",
    }
    beside = {"mlp": ("output.dense",)}
    shape_fields = {"head_dim": "attention_head_size", "dropout": "dropout_prob"}
    presets = {}

    def fitting(self, model: nn.Module) -> Family:
        return self
