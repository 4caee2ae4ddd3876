"""OPT: learned positions, an MLP without a module of its own, norms before or after (350m)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.projection import Projection
from modwright.core.compat.transformers import drops_final_norm
from modwright.nn import AttentionShape

_TINY = {
    "vocab_size": 128,
    "hidden_size": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 2,
    "pad_token_id": 1,
}


@register_family
class Opt(Family):
    name = "opt"
    model_types = ("opt",)
    block = {
        "attention": "self_attn",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "mlp": "fc1",
        "mlp.up": "fc1",
        "mlp.down": "fc2",
        "mlp_norm": "final_layer_norm",
    }
    beside = {"mlp": ("activation_fn", "fc2")}
    config_fields = {"intermediate_size": "ffn_dim", "activation": "activation_function"}
    presets = {
        "tiny-opt": _TINY,
        "tiny-opt-post": {**_TINY, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        projected = config.word_embed_proj_dim != config.hidden_size
        normed = config.do_layer_norm_before and not drops_final_norm(config)
        self.outer = {
            "embed": "decoder.embed_tokens",
            "positions": "decoder.embed_positions",
            **({"project_in": "decoder.project_in"} if projected else {}),
            "blocks": "decoder.layers",
            **({"final_norm": "decoder.final_layer_norm"} if normed else {}),
            **({"project_out": "decoder.project_out"} if projected else {}),
        }

    def is_post_norm(self) -> bool:
        return not self.config.do_layer_norm_before

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        return super().attention_shape(
            module, projections, head_dim=module.head_dim, dropout=float(module.dropout), **given
        )
