"""Attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.projection import Projection
from modwright.anatomy.views.part import Norm
from modwright.anatomy.views.sublayer import Scores, Sublayer
from modwright.core.capture import HookPoint
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

    @property
    def resized_as(self) -> str:
        return "attention"

    def projections(self) -> dict[str, Projection]:
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}

    def members(self) -> Mapping[str, Projection | Norm]:
        norms = {"q_norm": self.q_norm, "k_norm": self.k_norm}
        return {**self.projections(), **{r: norm for r, norm in norms.items() if norm is not None}}

    @property
    def weights(self) -> HookPoint:
        """Where its attention weights (b, H, t, s) are read, with eager attention alone: see
        :func:`modwright.core.capture.capture_attention`."""
        return HookPoint(self.module, "output", item=1)

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

    def scores(self, run: Pass) -> Scores:
        """Scores and the weighted sum, H T S (Dqk + Dv), masked positions included."""
        shape, seen = self.shape, run.attended(self.address)
        per_position = shape.num_heads * (shape.qk_head_dim + shape.v_head_dim)
        told = f"{shape.num_heads} heads x {run.tokens} x {seen}"
        return Scores(told, run.positions * seen * per_position)

    def kv_bytes(self, positions: int, dtype: torch.dtype | None = None) -> int:
        """K (Dqk + Dv) numbers per position; an encoder's keeps none."""
        shape = self.shape
        if not shape.causal:
            return 0
        stored = dtype or next(self.k.module.parameters()).dtype
        per_position = shape.num_kv_heads * (shape.qk_head_dim + shape.v_head_dim)
        return positions * per_position * stored.itemsize

    def activation_width(self, scored: int = 0) -> int:
        """Queries, keys, values and the mix; scores and weights of ``scored`` positions."""
        shape = self.shape
        both = shape.qk_head_dim + shape.v_head_dim
        return shape.num_kv_heads * both + shape.num_heads * (both + 2 * scored)

    def describe(self) -> str:
        told, shape = self.shape.describe(), self.shape
        if shape.sliding_window is not None:
            told += f", window {shape.sliding_window}"
        return f"{told}, groups of unequal size" if shape.kv_map else told

    def __repr__(self) -> str:
        return f"Attention({self.address}: {self.shape.describe()})"
