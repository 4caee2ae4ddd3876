"""What a user may register in one file; tests copy it and name the copy as a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from modwright.anatomy import Anatomy, Family, register_family
from modwright.checkpoint import register_preset
from modwright.core.progress import Progress
from modwright.edits import Change, Replace, register_part
from modwright.nn import RMSNorm
from modwright.nn.component import component
from modwright.surgery import Requirements, WithoutData, register_method


@register_family
class Starcoder2(Family):
    """StarCoder2."""

    name = "starcoder2"
    model_types = ("starcoder2",)
    outer = {"embed": "embed_tokens", "blocks": "layers", "final_norm": "norm"}
    block = {
        "attention": "self_attn",
        **{f"attention.{role}": f"self_attn.{role}_proj" for role in "qkvo"},
        "attention_norm": "input_layernorm",
        "mlp": "mlp",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "mlp_norm": "post_attention_layernorm",
    }
    presets = {
        "tiny-starcoder2": {
            "vocab_size": 128,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    }
    shape_fields = {"head_dim": "head_dim", "rotary_dim": "head_dim"}


@component("users_mean", kind="token_mixer", causal=True)
class RunningMean(nn.Module):
    """The mean of all tokens so far, normalized."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return self.norm(x.cumsum(1) / count[:, None])


class RunningMeanAttention(RunningMean):
    """The same, called as an attention is called."""

    def forward(self, hidden_states: Tensor, **more: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(hidden_states), None


@register_part("users_tanh")
def users_tanh(config: Any) -> nn.Module:
    return nn.Tanh()


@register_method("users_method", requires=Requirements(parts=("mlp",)))
@dataclass(frozen=True)
class UsersMethod(WithoutData):
    """Puts tanh in place of a norm.

    Attributes:
        block: in which block.
    """

    block: int = 1

    def title(self) -> str:
        return f"tanh in block {self.block}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Any:
        edit = Replace(f"blocks.{self.block}.mlp_norm", "users_tanh", {})
        return Change((edit,)), {"why": "asked for"}, ()


register_preset(
    "users-preset",
    lambda: LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    ),
)
