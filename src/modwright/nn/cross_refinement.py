"""Two branches of one map, of which the one for detail asks the other one (arXiv 2308.05022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.norms2d import ChannelNorm

__all__ = ["CrossRefinementBlock", "HighFrequencyBlock", "HybridFusion", "ResidualGroup"]


class HybridFusion(nn.Module):
    """x = low + mixer(high, norm(low)), then x + mlp(norm(x)); low and high are (B, C, H, W)."""

    def __init__(self, dim: int, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.mixer = ChannelNorm(dim), mixer
        self.norm2, self.mlp = ChannelNorm(dim), mlp

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = low + self.mixer(high, self.norm1(low))
        return x + self.mlp(self.norm2(x))


class CrossRefinementBlock(nn.Module):
    """fusion(low x, high x): (B, C, H, W) with its grid -> the same. ``low`` reads tokens.

    Example:
        >>> from modwright.nn.block import BlockSequence
        >>> from modwright.nn.channel_mixers.mlp import GatedDepthwise
        >>> from modwright.nn.token_mixers.cross_channel_attention import CrossChannelAttention
        >>> fusion = HybridFusion(8, CrossChannelAttention(8, 2), GatedDepthwise(8, 16))
        >>> block = CrossRefinementBlock(BlockSequence([]), HighFrequencyBlock(8), fusion)
        >>> block(torch.zeros(1, 8, 4, 4), (4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, low: nn.Module, high: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.low, self.high, self.fusion = low, high, fusion

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        low = to_feature_map(self.low(to_tokens(x), spatial_shape), spatial_shape)
        return self.fusion(low, self.high(x))


class ResidualGroup(nn.Module):
    """x + a 3 x 3 convolution of what the blocks make of x, a map (B, C, H, W)."""

    def __init__(self, dim: int, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks, self.conv = blocks, nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x, (x.shape[2], x.shape[3])))


class HighFrequencyBlock(nn.Module):
    """x + proj of a 3 x 3 convolution of one half, and a mapped maximum over 3 x 3 of the other.

    (B, C, H, W) -> the same; C is even.

    Example:
        >>> HighFrequencyBlock(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"two branches share the channels: {dim} is odd")
        half = dim // 2
        self.conv = nn.Conv2d(half, half, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.fc = nn.Conv2d(half, half, 1)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        first, second = x.chunk(2, dim=1)
        both = (self.act(self.conv(first)), self.act(self.fc(self.pool(second))))
        return x + self.proj(torch.cat(both, dim=1))
