"""Two branches of one map, the one for detail asking the other one (arXiv 2308.05022)."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.norms2d import make_norm

__all__ = ["CrossRefinementBlock", "HybridFusion", "ResidualGroup"]


class HybridFusion(nn.Module):
    """low + mixer(high, norm(low)), then a channel mixer with its norm and residual.

    Args:
        dim: channels.
        mixer: (high, low) -> map.
        mlp: map -> map.

    Shapes:
        low (B, C, H, W), high (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = make_norm("ln", dim, layout="map")
        self.mixer = mixer
        self.norm2 = make_norm("ln", dim, layout="map")
        self.mlp = mlp

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = low + self.mixer(high, self.norm1(low))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CrossRefinementBlock(nn.Module):
    """fusion(low x, high x).

    Args:
        low: blocks on tokens, called with (x, grid).
        high: map -> map.
        fusion: (low, high) -> map.

    Shapes:
        (B, C, H, W) with the grid (H, W) -> (B, C, H, W).

    Example:
        >>> import torch
        >>> from modwright.nn.block import BlockSequence
        >>> from modwright.nn.channel_mixers.gated_depthwise import GatedDepthwise
        >>> from modwright.nn.high_frequency import HighFrequencyBlock
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
        out: Tensor = self.fusion(low, self.high(x))
        return out


class ResidualGroup(nn.Module):
    """x + a 3 x 3 convolution of what the blocks make of x.

    Args:
        dim: channels.
        blocks: called with (x, grid).

    Shapes:
        (B, C, H, W) -> the same.
    """

    def __init__(self, dim: int, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(self.blocks(x, (x.shape[2], x.shape[3])))
        return out
