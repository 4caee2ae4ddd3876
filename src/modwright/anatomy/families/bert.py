"""BERT and MiniLM: post-norm encoders whose output projections stand beside their norms."""

from __future__ import annotations

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import TINY, paths
from modwright.core.errors import UnsupportedArchitecture


@register_family
class Bert(Family):
    name = "bert"
    model_types = ("bert",)
    post_norm = True
    causal = False
    outer = {
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "blocks": "encoder.layer",
    }
    block = {
        **paths(
            "attention",
            "attention.self",
            "attention.output.LayerNorm",
            q="query",
            k="key",
            v="value",
        ),
        "attention.o": "attention.output.dense",
        **paths("mlp", "intermediate", "output.LayerNorm", up="dense"),
        "mlp.down": "output.dense",
    }
    beside = {"mlp": ("output.dense",)}
    config_fields = {"num_kv_heads": ""}
    shape_fields = {"head_dim": "attention_head_size", "dropout": "dropout.p"}
    presets = {"tiny-bert": TINY}

    def check(self) -> None:
        super().check()
        if getattr(self.config, "is_decoder", False):
            raise UnsupportedArchitecture(
                "bert with is_decoder=True is not supported, only encoders"
            )
