"""Mixtral: a Llama whose MLPs are mixtures of experts, with a window if its config names one."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.mistral import Mistral
from modwright.anatomy.families.table import TINY
from modwright.anatomy.projection import as_projection
from modwright.anatomy.views import Layout, MixtureOfExperts, Mlp, Norm
from modwright.nn import Mixture


@register_family
class Mixtral(Mistral):
    name = "mixtral"
    model_types = ("mixtral",)
    block = {
        **{role: path for role, path in Mistral.block.items() if not role.startswith("mlp.")},
        "mlp.router": "mlp.gate",
    }
    config_fields = {"num_experts": "num_local_experts", "top_k": "num_experts_per_tok"}
    presets = {
        "tiny-mixtral": {
            **TINY,
            "intermediate_size": 64,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        }
    }

    def _read_mlp(
        self, block: nn.Module, address: str, layout: Layout, norms: dict[str, Norm]
    ) -> Mlp | MixtureOfExperts | None:
        module: Any = block.get_submodule(self.block["mlp"])
        if not hasattr(module, "experts"):
            return super()._read_mlp(block, address, layout, norms)
        here = f"{address}.mlp"
        act = module.act if isinstance(module, Mixture) else module.experts.act_fn
        return MixtureOfExperts(
            address=here,
            router=as_projection(module.gate, f"{here}.router"),
            stack=module.experts,
            top_k=module.top_k,
            activation=str(self.get("activation")),
            act=act,
            module=module,
            norm=norms.get("mlp_norm"),
            **self._hook_points(block, "mlp", layout),
        )
