"""GPT-2: learned positions, one fused [in, out] map for queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.projection import Projection


@register_family
class Gpt2(Family):
    name = "gpt2"
    model_types = ("gpt2",)
    transposed = True
    last_norm_keeps_width = True
    outer = {"embed": "wte", "positions": "wpe", "blocks": "h", "final_norm": "ln_f"}
    block = {
        "attention": "attn",
        "attention.o": "attn.c_proj",
        "attention_norm": "ln_1",
        "mlp": "mlp",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "mlp_norm": "ln_2",
    }
    config_fields = {
        "num_layers": "n_layer",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_heads": "n_head",
        "activation": "activation_function",
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
        if word == "num_kv_heads":
            return default
        value = super().get(word, default)
        return 4 * self.config.n_embd if word == "intermediate_size" and value is None else value

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        width = module.split_size
        projections = {
            role: Projection(
                module.c_attn, f"{address}.{role}", slice(i * width, (i + 1) * width), True
            )
            for i, role in enumerate("qkv")
        }
        projections["o"] = self.projection(block, "attention.o", f"{address}.o")
        shape = self.attention_shape(
            module,
            projections,
            head_dim=module.head_dim,
            dropout=float(module.attn_dropout.p),
            output_dropout=float(module.resid_dropout.p),
        )
        return {**projections, "shape": shape}
