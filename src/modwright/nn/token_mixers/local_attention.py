"""Attention with a convolution of the values beside it (arXiv 2307.08579)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.token_mixers.self_attention import SelfAttention, naive_attention

__all__ = ["AttentionWithLocalConv", "naive_local_attention"]


class AttentionWithLocalConv(SelfAttention):
    """proj(attention + conv(v)): the values pass a convolution per channel, too.

    The convolution needs a place for every token, so there are no prefix tokens. It also tells
    places apart: a model with it needs no positions.

    Args:
        dim: channels.
        num_heads: heads.
        kernel_size: of the convolution, odd.
        more: of :class:`SelfAttention`; ``storage`` is "q_kv" unless it is said.

    Shapes:
        (B, N, C) with its grid (H, W) -> the same.

    Raises:
        ValueError: an even kernel, or tokens that do not fill the grid.

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

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        if spatial_shape is None:
            raise ValueError("attention with a convolution needs the grid of its tokens")
        q, k, v = self.heads(x)
        near = self.local(to_feature_map(v.transpose(1, 2).flatten(2), spatial_shape))
        return self.finish(self.attend(q, k, v, spatial_shape) + to_tokens(near))


def naive_local_attention(
    part: AttentionWithLocalConv, x: Tensor, spatial_shape: SpatialShape
) -> Tensor:
    """What the part gives in eval mode, from scores that are kept and a sum over shifted maps."""
    q, k, v = part.heads(x)
    mixed = naive_attention(q, k, v, part.scale).transpose(1, 2).flatten(2)
    height, width = spatial_shape
    weight, bias = part.local.weight, part.local.bias
    assert bias is not None
    reach = weight.shape[-1] // 2
    padded = F.pad(to_feature_map(v.transpose(1, 2).flatten(2), spatial_shape), [reach] * 4)
    near = torch.zeros_like(mixed) + bias
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            shifted = padded[:, :, i : i + height, j : j + width]
            near = near + to_tokens(shifted) * weight[:, 0, i, j]
    return part.finish(mixed + near)
