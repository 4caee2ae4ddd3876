"""Bidirectional attention over tokens, with the ways in which vision models store its maps.

Axes: B batch, N tokens, C channels, H heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens

__all__ = [
    "STORAGE",
    "AttentionWithLocalConv",
    "SelfAttention",
    "check_heads",
    "naive_attention",
    "naive_local_attention",
]


# The linear layers that hold queries, keys and values, each named by what it gives, in order.
STORAGE: dict[str, tuple[str, ...]] = {
    "fused": ("qkv",),
    "q_kv": ("q", "kv"),
    "qk_v": ("qk", "v"),
    "separate": ("q", "k", "v"),
}


def check_heads(width: int, num_heads: int) -> None:
    """Refuses heads that do not share the channels evenly."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide a width of {width}")


def naive_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k') v, every step a tensor of its own: (..., N, d) -> (..., N, d)."""
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1) @ v


class SelfAttention(nn.Module):
    """Softmax attention of all tokens to all tokens, prefix tokens included.

    (B, N, C) -> (B, N, out_dim). A subclass may set ``bias``, a part that, called with the grid,
    gives what is added to the scores (H, N, N), ``local``, a convolution of the map of values that
    is added before the last map, and ``proj_drop``, dropout on the result.

    Args:
        out_dim: channels that go out, and width of queries, keys and values together; ``dim``
            unless it is said.
        scale: of the scores; d ** -0.5 unless it is said.
        storage: a name of :data:`STORAGE`.
        linear: makes a map from (in, out, bias).
        gate: a part that the result passes through, on (B, N, C).

    Example:
        >>> SelfAttention(8, 2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"
    bias: nn.Module | None
    local: nn.Conv2d | None

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
        check_heads(width, num_heads)
        if storage not in STORAGE:
            raise ValueError(f"unknown storage {storage!r}; valid values: {', '.join(STORAGE)}")
        self.dim, self.width, self.num_heads = dim, width, num_heads
        self.scale = (width // num_heads) ** -0.5 if scale is None else scale
        self.storage = storage
        for name in STORAGE[storage]:
            self.add_module(name, linear(dim, len(name) * width, qkv_bias))
        self.proj = nn.Linear(width, width)
        self.gate, self.bias, self.local = gate, None, None
        self.proj_drop = nn.Dropout(0.0)

    def projections(self) -> dict[str, nn.Module | tuple[nn.Module, slice]]:
        """The linear layers by role; a layer that gives several has a slice of rows for each."""
        found: dict[str, nn.Module | tuple[nn.Module, slice]] = {}
        for name in STORAGE[self.storage]:
            layer, width = self.get_submodule(name), self.width
            for i, role in enumerate(name):
                found[role] = (
                    layer if len(name) == 1 else (layer, slice(i * width, (i + 1) * width))
                )
        return {**{role: found[role] for role in "qkv"}, "o": self.proj}

    @property
    def narrowing_blocker(self) -> str:
        """Why its heads cannot go one by one; empty where nothing speaks against it."""
        if self.bias is not None:
            return "its position bias has numbers for each head"
        if self.local is not None:
            return "a convolution reads its values, too"
        return "a gate reads its result" if self.gate is not None else ""

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
        mixed = self.proj(mixed)
        return self.proj_drop(mixed if self.gate is None else self.gate(mixed))

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        q, k, v = self.heads(x)
        mixed = self.attend(q, k, v, spatial_shape)
        if self.local is not None:
            if spatial_shape is None:
                raise ValueError("attention with a convolution needs the grid of its tokens")
            values = to_feature_map(v.transpose(1, 2).flatten(2), spatial_shape)
            mixed = mixed + to_tokens(self.local(values))
        return self.finish(mixed)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale:.4g}"


class AttentionWithLocalConv(SelfAttention):
    """proj(attention + conv(v)): the values pass a convolution per channel, too (arXiv 2307.08579).

    (B, N, C) with its grid (H, W) -> the same. The convolution needs a position for every token, so
    there are no prefix tokens. It also tells positions apart: no position embedding is needed.

    Example:
        >>> AttentionWithLocalConv(8, 2)(torch.zeros(1, 15, 8), (3, 5)).shape
        torch.Size([1, 15, 8])
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int = 3, **more: Any) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        super().__init__(dim, num_heads, **{"storage": "q_kv", **more})
        width = self.width
        self.local = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)


def naive_local_attention(
    part: AttentionWithLocalConv, x: Tensor, spatial_shape: SpatialShape
) -> Tensor:
    """What the part gives in eval mode, from scores that are kept and a sum over shifted maps."""
    q, k, v = part.heads(x)
    mixed = naive_attention(q, k, v, part.scale).transpose(1, 2).flatten(2)
    height, width = spatial_shape
    local: Any = part.local
    weight, reach = local.weight, local.kernel_size[0] // 2
    padded = F.pad(to_feature_map(v.transpose(1, 2).flatten(2), spatial_shape), [reach] * 4)
    near = torch.zeros_like(mixed) + local.bias
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            shifted = padded[:, :, i : i + height, j : j + width]
            near = near + to_tokens(shifted) * weight[:, 0, i, j]
    return part.finish(mixed + near)
