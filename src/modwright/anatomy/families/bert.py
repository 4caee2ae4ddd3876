"""BERT and MiniLM: post-norm encoders whose output projections stand beside their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import TINY
from modwright.anatomy.projection import Projection
from modwright.core.errors import UnsupportedArchitecture
from modwright.nn import AttentionShape


@register_family
class Bert(Family):
    name = "bert"
    model_types = ("bert",)
    outer = {
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "blocks": "encoder.layer",
    }
    block = {
        "attention": "attention.self",
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.o": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp": "intermediate",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    beside = {"mlp": ("output.dense",)}
    presets = {"tiny-bert": TINY}

    def check(self) -> None:
        super().check()
        if getattr(self.config, "is_decoder", False):
            raise UnsupportedArchitecture(
                "bert with is_decoder=True is not supported, only encoders"
            )

    def is_post_norm(self) -> bool:
        return True

    def is_causal(self) -> bool:
        return False

    def get(self, word: str, default: Any = None) -> Any:
        return default if word == "num_kv_heads" else super().get(word, default)

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        return super().attention_shape(
            module,
            projections,
            head_dim=module.attention_head_size,
            dropout=float(module.dropout.p),
        )
