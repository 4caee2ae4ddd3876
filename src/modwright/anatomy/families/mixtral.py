"""Mixtral: a Llama whose MLPs are mixtures of experts, with a window if its config names one."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.mistral import Mistral
from modwright.anatomy.families.table import paths, tiny
from modwright.anatomy.projection import as_projection
from modwright.nn import Mixture


@register_family
class Mixtral(Mistral):
    name = "mixtral"
    model_types = ("mixtral",)
    block = {
        **{role: path for role, path in Mistral.block.items() if role.startswith("attention")},
        **paths("mlp", "mlp", "post_attention_layernorm", router="gate"),
    }
    config_fields = {"num_experts": "num_local_experts", "top_k": "num_experts_per_tok"}
    presets = {
        "tiny-mixtral": tiny(
            intermediate_size=64,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
        )
    }

    def read_mlp(self, block: nn.Module, address: str) -> dict[str, Any]:
        module: Any = block.get_submodule("mlp")
        return {
            "router": as_projection(module.gate, f"{address}.router"),
            "stack": module.experts,
            "top_k": module.top_k,
            **self._activation_of(module),
        }

    def _activation_of(self, module: Any) -> dict[str, Any]:
        if isinstance(module, Mixture):
            return {"activation": module.shape.activation, "act": module.act}
        return {"activation": str(self.get("activation")), "act": module.experts.act_fn}
