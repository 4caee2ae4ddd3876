"""GPT-2: learned positions, one fused [in, out] map for queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import paths
from modwright.anatomy.projection import Projection


@register_family
class Gpt2(Family):
    name = "gpt2"
    model_types = ("gpt2",)
    transposed = True
    last_norm_keeps_width = True
    outer = {"embed": "wte", "positions": "wpe", "blocks": "h", "final_norm": "ln_f"}
    block = {
        **paths("attention", "attn", "ln_1", o="c_proj"),
        **paths("mlp", "mlp", "ln_2", up="c_fc", down="c_proj"),
    }
    config_fields = {
        "num_layers": "n_layer",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_heads": "n_head",
        "num_kv_heads": "",
        "activation": "activation_function",
    }
    shape_fields = {
        "head_dim": "head_dim",
        "dropout": "attn_dropout.p",
        "output_dropout": "resid_dropout.p",
    }
    presets = {
        "tiny-gpt2": {
            "vocab_size": 128,
            "n_embd": 48,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 256,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        }
    }

    def get(self, word: str, default: Any = None) -> Any:
        value = super().get(word, default)
        return 4 * self.config.n_embd if word == "intermediate_size" and value is None else value

    def read_qkv(self, block: nn.Module, module: Any, address: str) -> dict[str, Projection]:
        return self.side_by_side(module.c_attn, module.split_size, address)
