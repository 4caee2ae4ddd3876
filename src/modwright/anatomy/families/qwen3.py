"""Qwen3: a Llama whose queries and keys are normalized, with a width of heads of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.llama import Llama
from modwright.anatomy.families.table import tiny
from modwright.anatomy.views import Norm


@register_family
class Qwen3(Llama):
    name = "qwen3"
    model_types = ("qwen3",)
    presets = {
        "tiny-qwen3": tiny(
            num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, eos_token_id=[2, 5]
        )
    }

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        found = super().read_attention(block, module, address)
        norms = {
            role: Norm(getattr(module, role), f"{address}.{role}") for role in ("q_norm", "k_norm")
        }
        shape = replace(found["shape"], qk_norm_eps=norms["q_norm"].eps)
        return {**found, **norms, "shape": shape}
