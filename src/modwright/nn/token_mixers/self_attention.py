"""Bidirectional attention over tokens, with the ways in which vision models store its maps.

Axes: B batch, N tokens, C channels, H heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape

__all__ = ["STORAGE", "SelfAttention", "naive_attention"]

# The linear layers that hold queries, keys and values, each named by what it gives, in order.
STORAGE: dict[str, tuple[str, ...]] = {
    "fused": ("qkv",),
    "q_kv": ("q", "kv"),
    "qk_v": ("qk", "v"),
    "separate": ("q", "k", "v"),
}


def naive_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k') v, every step a tensor of its own: (..., N, d) -> (..., N, d)."""
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1) @ v


class SelfAttention(nn.Module):
    """Softmax attention of all tokens to all tokens, prefix tokens included.

    Args:
        dim: channels that come in.
        num_heads: heads.
        out_dim: channels that go out, and width of queries, keys and values together; ``dim``
            unless it is said.
        qkv_bias: biases of the maps to queries, keys and values.
        scale: of the scores; d ** -0.5 unless it is said.
        storage: "fused", "q_kv", "qk_v" or "separate": how the three maps are stored.
        linear: makes a map from (in, out, bias).
        gate: a part that the result passes through, on (B, N, C).

    A subclass may set ``bias``, a part that, called with the grid, gives what is added to the
    scores (H, N, N), and ``proj_drop``, dropout on the result.

    Shapes:
        (B, N, C) -> (B, N, out_dim).

    Example:
        >>> SelfAttention(8, 2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"
    bias: nn.Module | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        out_dim: int | None = None,
        qkv_bias: bool = True,
        scale: float | None = None,
        storage: str = "fused",
        linear: Callable[[int, int, bool], nn.Module] = nn.Linear,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = dim if out_dim is None else out_dim
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}")
        if storage not in STORAGE:
            raise ValueError(f"unknown storage {storage!r}; valid values: {', '.join(STORAGE)}")
        self.dim, self.width, self.num_heads = dim, width, num_heads
        self.scale = (width // num_heads) ** -0.5 if scale is None else scale
        self.storage = storage
        for name in STORAGE[storage]:
            self.add_module(name, linear(dim, len(name) * width, qkv_bias))
        self.proj = nn.Linear(width, width)
        self.gate, self.bias = gate, None
        self.proj_drop = nn.Dropout(0.0)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (B, N, C) -> three of (B, H, N, d)."""
        found: list[Tensor] = []
        for name in STORAGE[self.storage]:
            stacked = self.get_submodule(name)(x).unflatten(2, (len(name), self.num_heads, -1))
            found.extend(stacked.permute(2, 0, 3, 1, 4).unbind(0))
        q, k, v = found
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spatial_shape: SpatialShape | None = None
    ) -> Tensor:
        """Three of (B, H, N, d) -> (B, N, H d)."""
        bias = None if self.bias is None else self.bias(spatial_shape)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)

    def finish(self, mixed: Tensor) -> Tensor:
        """The last map, the gate and dropout."""
        out: Tensor = self.proj(mixed)
        return self.proj_drop(out if self.gate is None else self.gate(out))

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return self.finish(self.attend(*self.heads(x), spatial_shape))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale:.4g}"
