"""OPT: learned positions, an MLP without a module of its own, norms before or after (350m)."""

from __future__ import annotations

from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import paths
from modwright.core.compat.transformers import drops_final_norm

_MAPS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
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
    outer = {
        "embed": "decoder.embed_tokens",
        "positions": "decoder.embed_positions",
        "project_in": "decoder.project_in",
        "blocks": "decoder.layers",
        "final_norm": "decoder.final_layer_norm",
        "project_out": "decoder.project_out",
    }
    block = {
        **paths("attention", "self_attn", "self_attn_layer_norm", **_MAPS),
        "mlp": "fc1",
        "mlp.up": "fc1",
        "mlp.down": "fc2",
        "mlp_norm": "final_layer_norm",
    }
    beside = {"mlp": ("activation_fn", "fc2")}
    config_fields = {"intermediate_size": "ffn_dim", "activation": "activation_function"}
    shape_fields = {"head_dim": "head_dim", "dropout": "dropout"}
    presets = {
        "tiny-opt": _TINY,
        "tiny-opt-post": {**_TINY, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_norm = not config.do_layer_norm_before
        gone = {"project_in", "project_out"}
        if config.word_embed_proj_dim != config.hidden_size:
            gone = set()
        if drops_final_norm(config) or not config.do_layer_norm_before:
            gone.add("final_norm")
        self.outer = {name: path for name, path in self.outer.items() if name not in gone}
