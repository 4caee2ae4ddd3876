"""GPT-NeoX: queries, keys and values interleaved per head, partial rotary, parallel residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.table import paths, tiny
from modwright.anatomy.projection import Projection
from modwright.anatomy.views import Layout

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@register_family
class GptNeox(Family):
    name = "gpt_neox"
    model_types = ("gpt_neox",)
    outer = {"embed": "embed_in", "blocks": "layers", "final_norm": "final_layer_norm"}
    block = {
        **paths("attention", "attention", "input_layernorm", o="dense"),
        **paths("mlp", "mlp", "post_attention_layernorm", up="dense_h_to_4h", down="dense_4h_to_h"),
    }
    config_fields = {"num_kv_heads": ""}
    shape_fields = {
        "head_dim": "head_size",
        "rotary_dim": "rotary_ndims",
        "dropout": "attention_dropout",
    }
    presets = {"tiny-gpt-neox": tiny(rope_parameters=_ROPE)}

    def layout(self, block: nn.Module) -> Layout:
        return "parallel" if block.use_parallel_residual else "pre"

    def read_qkv(self, block: nn.Module, module: Any, address: str) -> dict[str, Projection]:
        fused = module.query_key_value
        rows = torch.arange(fused.weight.shape[0]).view(-1, 3, module.head_size)  # (H, 3, D)
        return {
            role: Projection(fused, f"{address}.{role}", rows[:, i].reshape(-1))
            for i, role in enumerate("qkv")
        }
