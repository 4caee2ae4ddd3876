"""BERT and MiniLM: post-norm encoders whose output projections stand beside their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.parts import Layout
from modwright.anatomy.projection import Projection
from modwright.errors import UnsupportedArchitecture
from modwright.nn import AttentionShape


@register_family
class Bert(Family):
    name = "bert"
    model_types = ("bert",)
    stem = {
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
    presets = {
        "tiny-bert": {
            "vocab_size": 128,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        }
    }

    def check(self) -> None:
        super().check()
        if getattr(self.config, "is_decoder", False):
            raise UnsupportedArchitecture(
                "bert with is_decoder=True is not supported, only encoders"
            )

    def layout(self, block: nn.Module) -> Layout:
        return "post"

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
            project_out=False,
        )

    def place(
        self, block: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        placed = super().place(block, role, part, kwargs)
        if part == "attention":
            width = kwargs["num_heads"] * kwargs["v_head_dim"]
            linear = {
                "in_features": width,
                "out_features": kwargs["hidden_size"],
                "bias": "o" in kwargs.get("biases", ""),
            }
            placed.append((self.block["attention.o"], "linear", linear))
        return placed

    def place_absent(self, role: str, drop_norm: bool) -> list[Placement]:
        """A block normalizes h + sublayer(h); without the sublayer that is norm(h), or h itself."""
        self.check_removable(role)
        out = self.block["attention.o" if role == "attention" else "mlp.down"]
        placed: list[Placement] = [
            (self.block[role], "pass_through", {"as_tuple": role == "attention"}),
            (out, "absent", {}),
        ]
        if drop_norm:
            placed.append((self.block[f"{role}_norm"], "identity", {}))
        return placed
