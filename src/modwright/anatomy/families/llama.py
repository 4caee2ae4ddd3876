"""Llama: grouped queries, rotary positions, gated MLP, RMS norms. SmolLM2 is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import TINY
from modwright.anatomy.projection import Projection
from modwright.nn import AttentionShape


@register_family
class Llama(Family):
    name = "llama"
    model_types = ("llama",)
    outer = {"embed": "embed_tokens", "blocks": "layers", "final_norm": "norm"}
    block = {
        "attention": "self_attn",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "mlp": "mlp",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "mlp_norm": "post_attention_layernorm",
    }
    presets = {
        "tiny-llama": {
            **TINY,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "tie_word_embeddings": True,
            "eos_token_id": [2, 5],
            "pad_token_id": 0,
        }
    }

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        return super().attention_shape(
            module,
            projections,
            head_dim=module.head_dim,
            rotary_dim=module.head_dim,
            dropout=float(module.attention_dropout),
            **given,
        )
