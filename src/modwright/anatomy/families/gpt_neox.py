"""GPT-NeoX: queries, keys and values interleaved per head, partial rotary, parallel residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import TINY
from modwright.anatomy.projection import Projection
from modwright.anatomy.views import Layout


@register_family
class GptNeox(Family):
    name = "gpt_neox"
    model_types = ("gpt_neox",)
    outer = {"embed": "embed_in", "blocks": "layers", "final_norm": "final_layer_norm"}
    block = {
        "attention": "attention",
        "attention.o": "attention.dense",
        "attention_norm": "input_layernorm",
        "mlp": "mlp",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        "mlp_norm": "post_attention_layernorm",
    }
    presets = {
        "tiny-gpt-neox": {
            **TINY,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        }
    }

    def layout(self, block: nn.Module) -> Layout:
        return "parallel" if block.use_parallel_residual else "pre"

    def get(self, word: str, default: Any = None) -> Any:
        return default if word == "num_kv_heads" else super().get(word, default)

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        head_dim = module.head_size
        fused = module.query_key_value
        per_head = torch.arange(fused.weight.shape[0]).view(-1, 3, head_dim)  # (H, 3, D)
        projections = {
            role: Projection(fused, f"{address}.{role}", per_head[:, i].reshape(-1))
            for i, role in enumerate("qkv")
        }
        projections["o"] = self.projection(block, "attention.o", f"{address}.o")
        shape = self.attention_shape(
            module,
            projections,
            head_dim=head_dim,
            rotary_dim=module.rotary_ndims,
            dropout=float(module.attention_dropout),
        )
        return {**projections, "shape": shape}
