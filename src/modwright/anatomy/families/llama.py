"""Llama: grouped queries, rotary positions, gated MLP, RMS norms. SmolLM2 is one."""

from __future__ import annotations

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import paths, tiny

_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12}


@register_family
class Llama(Family):
    name = "llama"
    model_types = ("llama",)
    outer = {"embed": "embed_tokens", "blocks": "layers", "final_norm": "norm"}
    block = {
        **paths("attention", "self_attn", "input_layernorm", **{r: f"{r}_proj" for r in "qkvo"}),
        **paths("mlp", "mlp", "post_attention_layernorm", **_MLP),
    }
    shape_fields = {
        "head_dim": "head_dim",
        "rotary_dim": "head_dim",
        "dropout": "attention_dropout",
    }
    presets = {"tiny-llama": tiny(**_HEADS, tie_word_embeddings=True, eos_token_id=[2, 5])}
