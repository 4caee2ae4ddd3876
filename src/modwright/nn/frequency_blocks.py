"""Blocks that mix high frequencies by convolution and low ones by attention (arXiv 2311.05707)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modwright.nn.block import Block
from modwright.nn.layouts import SpatialShape

__all__ = ["BranchedBlock", "EmbeddedBlock", "FrequencyPair"]


class EmbeddedBlock(nn.Module):
    """Blocks behind a map to their number of channels.

    Args:
        embed: map -> map of the blocks' channels; None where they are there already.
        blocks: called one after the other with (x, grid).

    Shapes:
        (B, C, H, W) -> (B, C', H, W).

    Example:
        >>> EmbeddedBlock(nn.Conv2d(4, 8, 1), [])(torch.zeros(1, 4, 2, 2), (2, 2)).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, embed: nn.Module | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks:
            x = block(x, spatial_shape)
        return x


class FrequencyPair(nn.Module):
    """A low-frequency part, and a high-frequency part that is made from it, side by side.

    Args:
        low: (x, grid) -> map (B, L, H, W).
        high: (low, grid) -> map (B, C - L, H, W).

    Shapes:
        (B, C', H, W) -> (B, C, H, W).
    """

    def __init__(self, low: nn.Module, high: nn.Module) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        low = self.low(x, spatial_shape)
        return torch.cat((low, self.high(low, spatial_shape)), dim=1)


class BranchedBlock(nn.Module):
    """Parts that all read the same map, side by side, and a block over all their channels.

    Args:
        parts: (x, grid) -> map each.
        block: on as many channels as the parts give together.

    Shapes:
        (B, C', H, W) -> (B, C, H, W).
    """

    def __init__(self, parts: Sequence[nn.Module], block: Block) -> None:
        super().__init__()
        self.parts, self.block = nn.ModuleList(parts), block

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        mixed = torch.cat([part(x, spatial_shape) for part in self.parts], dim=1)
        out: Tensor = self.block(mixed, spatial_shape)
        return out
