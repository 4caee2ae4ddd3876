"""A ViT in the module tree that transformers had before: same weights, other places."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OlderVitModel"]


def node(**children: nn.Module) -> nn.Module:
    """A module that only holds others."""
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder


class SelfAttention(nn.Module):
    """Returns the mix of heads; the map of outputs lies beside it."""

    def __init__(self, new: Any, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = new.q_proj, new.k_proj, new.v_proj
        self.attention_head_size, self.scaling = new.head_dim, new.scaling
        self.dropout_prob = dropout

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        b, t, _ = hidden_states.shape
        q, k, v = (
            linear(hidden_states).view(b, t, -1, self.attention_head_size).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return mixed.transpose(1, 2).reshape(b, t, -1), None


class AttentionAndOutput(nn.Module):
    def __init__(self, new: Any, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(new, dropout)
        self.output = node(dense=new.o_proj)

    def forward(self, hidden_states: Tensor) -> Tensor:
        mixed, _ = self.attention(hidden_states)
        return self.output.dense(mixed)


class Intermediate(nn.Module):
    def __init__(self, new: Any) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = new.fc1, new.activation_fn

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class Output(nn.Module):
    """Adds the stream by itself."""

    def __init__(self, new: Any) -> None:
        super().__init__()
        self.dense = new.fc2

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dense(hidden_states) + input_tensor


class Layer(nn.Module):
    def __init__(self, new: Any, dropout: float) -> None:
        super().__init__()
        self.attention = AttentionAndOutput(new.attention, dropout)
        self.intermediate, self.output = Intermediate(new.mlp), Output(new.mlp)
        self.layernorm_before, self.layernorm_after = new.layernorm_before, new.layernorm_after

    def forward(self, hidden_states: Tensor) -> Tensor:
        middle = self.attention(self.layernorm_before(hidden_states)) + hidden_states
        return self.output(self.intermediate(self.layernorm_after(middle)), middle)


class OlderVitModel(nn.Module):
    """Takes a ViTModel of today apart and puts it together as it was."""

    main_input_name = "pixel_values"

    def __init__(self, new: Any) -> None:
        super().__init__()
        new = copy.deepcopy(new)
        self.config = new.config
        self.embeddings = new.embeddings
        dropout = float(new.config.attention_probs_dropout_prob)
        layers = nn.ModuleList(Layer(layer, dropout) for layer in new.layers)
        self.encoder = node(layer=layers)
        self.layernorm, self.pooler = new.layernorm, new.pooler
        self.eval()

    def forward(self, pixel_values: Tensor, return_dict: bool = True) -> tuple[Tensor, Tensor]:
        hidden = self.embeddings(pixel_values)
        for layer in self.encoder.layer:
            hidden = layer(hidden)
        hidden = self.layernorm(hidden)
        return hidden, self.pooler(hidden)
