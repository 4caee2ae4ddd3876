"""Attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modwright.anatomy.projection import Projection
from modwright.anatomy.views.part import Norm
from modwright.anatomy.views.sublayer import Sublayer
from modwright.nn import AttentionShape, GroupedAttention

__all__ = ["Attention"]


@dataclass
class Attention(Sublayer):
    """Multi-head attention. ``shape`` holds every number that fixes its structure."""

    writes_residual = ("o",)
    generic = (GroupedAttention,)

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    shape: AttentionShape
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    @property
    def hidden_size(self) -> int:
        return self.shape.hidden_size

    @property
    def num_heads(self) -> int:
        return self.shape.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.shape.num_kv_heads

    def projections(self) -> dict[str, Projection]:
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}

    def members(self) -> Mapping[str, Projection | Norm]:
        norms = {"q_norm": self.q_norm, "k_norm": self.k_norm}
        return {**self.projections(), **{r: norm for r, norm in norms.items() if norm is not None}}

    def read_q(self) -> Tensor:
        """Query weights (H, D, d)."""
        return self.q.weight.reshape(self.shape.num_heads, self.shape.qk_head_dim, -1)

    def read_k(self) -> Tensor:
        """Key weights (K, D, d)."""
        return self.k.weight.reshape(self.shape.num_kv_heads, self.shape.qk_head_dim, -1)

    def read_v(self) -> Tensor:
        """Value weights (K, D, d)."""
        return self.v.weight.reshape(self.shape.num_kv_heads, self.shape.v_head_dim, -1)

    def read_o(self) -> Tensor:
        """Output weights (H, D, d): what channel D of head H adds to the stream."""
        return self.o.weight.T.reshape(self.shape.num_heads, self.shape.v_head_dim, -1)

    def kv_of_head(self) -> Tensor:
        """(H,): the key/value head that each query head reads."""
        if self.is_generic and self.shape.kv_map:
            return self.module.get_buffer("kv_index").detach()
        groups = self.shape.num_heads // self.shape.num_kv_heads
        return torch.arange(self.shape.num_heads) // groups

    def rotary_index(self) -> Tensor | None:
        """(K, D): the rotary channel that each channel turns with (``rotary_dim``: none)."""
        shape = self.shape
        if not shape.rotary_dim:
            return None
        if shape.rotary_gather:
            return self.module.get_buffer("rotary_index").detach()
        own = torch.arange(shape.qk_head_dim).clamp(max=shape.rotary_dim)
        return own.repeat(shape.num_kv_heads, 1)

    def __repr__(self) -> str:
        s = self.shape
        return (
            f"Attention({self.address}: {s.num_heads} heads, {s.num_kv_heads} kv, "
            f"qk {s.qk_head_dim}, v {s.v_head_dim})"
        )
