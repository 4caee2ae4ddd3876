"""Scale-aware modulation: values times features of several kernel sizes (arXiv 2307.08579).

No product of tokens with tokens stands in it, so its cost grows with the number of
positions and not with its square.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.reparameterize import fuse_conv_bn
from modwright.nn.token_mixers.self_attention import check_heads

__all__ = [
    "MultiHeadMixedConv",
    "ScaleAwareAggregation",
    "ScaleAwareModulation",
    "naive_aggregation",
]


class MultiHeadMixedConv(nn.Module):
    """A convolution per channel whose kernel grows from head to head: 3, 5, 7, and so on.

    (B, C, H, W) -> the same; each head has its own run of the channels.

    Example:
        >>> [conv.kernel_size[0] for conv in MultiHeadMixedConv(8, 4).heads]
        [3, 5, 7, 9]
    """

    layout = "map"

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        width = dim // num_heads
        self.heads = nn.ModuleList(
            nn.Conv2d(width, width, 3 + 2 * head, padding=1 + head, groups=width)
            for head in range(num_heads)
        )

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        pieces = x.chunk(len(self.heads), dim=1)
        return torch.cat([conv(piece) for conv, piece in zip(self.heads, pieces)], dim=1)


class ScaleAwareAggregation(nn.Module):
    """Brings the scales together: first one channel of every head, then all channels.

    (B, C, H, W) -> the same. The first map mixes groups of h channels that hold the same channel of
    each head, so channels that lie h groups apart are brought together before it. Between the two
    maps there are ``ratio`` channels per channel.

    Example:
        >>> ScaleAwareAggregation(8, 4)(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    layout = "map"

    def __init__(self, dim: int, num_heads: int = 4, ratio: int = 2) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, not {ratio}")
        self.num_heads = num_heads
        self.expand = nn.Conv2d(dim, ratio * dim, 1, groups=dim // num_heads)
        self.norm: nn.Module | None = nn.BatchNorm2d(ratio * dim)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        by_channel = x.unflatten(1, (self.num_heads, -1)).transpose(1, 2).flatten(1, 2)
        x = self.expand(by_channel)
        return self.reduce(self.act(x if self.norm is None else self.norm(x)))

    def fuse(self) -> ScaleAwareAggregation:
        """Folds the batch norm into the map before it, in place."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.expand, self.norm = fuse_conv_bn(self.expand, self.norm), None
        return self


def naive_aggregation(part: ScaleAwareAggregation, x: Tensor) -> Tensor:
    """What the part gives, from a matrix of a permutation and one with blocks on its diagonal."""
    dim, heads = x.shape[1], part.num_heads
    groups = dim // heads
    order = [head * groups + channel for channel in range(groups) for head in range(heads)]
    permutation = torch.eye(dim, dtype=x.dtype, device=x.device)[order]
    blocks = torch.block_diag(*part.expand.weight.flatten(1).chunk(groups))
    expand, reduce = (part.expand.bias.view(-1, 1, 1), part.reduce.bias.view(-1, 1, 1))  # type: ignore[union-attr]
    x = torch.einsum("oc,bchw->bohw", blocks @ permutation, x) + expand
    x = part.act(x if part.norm is None else part.norm(x))
    return torch.einsum("oc,bchw->bohw", part.reduce.weight.flatten(1), x) + reduce


class ScaleAwareModulation(nn.Module):
    """proj(modulator * v(x)), the modulator made of s(x) by convolutions of several sizes.

    (B, N, C) with its grid (H, W) -> the same. The modulator is not kept: a forward hook on
    ``aggregate`` sees it.

    Example:
        >>> ScaleAwareModulation(8, 4)(torch.zeros(1, 15, 8), (3, 5)).shape
        torch.Size([1, 15, 8])
    """

    layout = "tokens"

    def __init__(self, dim: int, num_heads: int = 4, ratio: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.v, self.s = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.mix = MultiHeadMixedConv(dim, num_heads)
        self.aggregate = ScaleAwareAggregation(dim, num_heads, ratio)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        modulator = self.aggregate(self.mix(to_feature_map(self.s(x), spatial_shape)))
        return self.proj(to_tokens(modulator) * self.v(x))
