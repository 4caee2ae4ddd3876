"""Dense connections around blocks: the stream grows by what each adds (arXiv 1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import SpatialShape

__all__ = ["DenseBlock", "DenseTransition"]


class DenseBlock(nn.Module):
    """The stream, and beside it a few channels made of what a block gives.

    Args:
        block: any block on tokens of ``dim`` channels.
        dim: channels that come in.
        growth: channels that are added.

    Shapes:
        (B, N, C) with ``spatial_shape`` -> (B, N, C + growth).

    Example:
        >>> from modwright.nn.block import Block
        >>> nothing = Block(8, None, None, lambda: nn.LayerNorm(8))
        >>> DenseBlock(nothing, 8, 4)(torch.zeros(1, 6, 8), (2, 3)).shape
        torch.Size([1, 6, 12])
    """

    layout = "tokens"

    def __init__(self, block: nn.Module, dim: int, growth: int) -> None:
        super().__init__()
        if growth < 1:
            raise ValueError(f"growth must be at least 1, not {growth}")
        self.block = block
        self.grow = nn.Linear(dim, growth)

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        return torch.cat((x, self.grow(self.block(x, spatial_shape))), dim=2)


class DenseTransition(nn.Module):
    """Narrows the stream between two groups of dense blocks: act(W x).

    Args:
        dim: channels that come in.
        out_dim: channels that go out.
        act: name of the activation.

    Shapes:
        (B, N, C) -> (B, N, C').
    """

    layout = "tokens"

    def __init__(self, dim: int, out_dim: int, act: str = "gelu") -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim)
        self.act = make_activation(act)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        out: Tensor = self.act(self.linear(x))
        return out
