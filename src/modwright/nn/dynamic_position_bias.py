"""A bias of attention that a small network gives for each offset of two places (arXiv 2308.05022).

Behind arXiv 2108.00154.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape
from modwright.nn.windows import offsets_in

__all__ = ["DynamicPositionBias"]


class DynamicPositionBias(nn.Module):
    """Offsets of places in a window -> a number per head.

    With ``dim`` 1 the layer norms see a single number and give their bias whatever it is, so all
    offsets get the same and the softmax does not see it. Published models are built like that.

    Args:
        dim: width of the network.
        num_heads: numbers that come out.
        window: (height, width) of the window; its places go row by row.

    Shapes:
        nothing -> (heads, T, T) for the T places of the window: what a query (row) adds to the
        score of a key (column).

    Example:
        >>> DynamicPositionBias(8, 2, (2, 4))().shape
        torch.Size([2, 8, 8])
    """

    def __init__(self, dim: int, num_heads: int, window: SpatialShape) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"the network of positions needs at least 1 channel, not {dim}")
        self.window = window
        self.proj = nn.Linear(2, dim)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out))
            for out in (dim, dim, num_heads)
        )

    def of(self, offsets: Tensor) -> Tensor:
        """Rows and columns between a query and a key, (..., 2) -> (..., heads)."""
        found: Tensor = self.proj(offsets)
        for step in self.steps:
            found = step(found)
        return found

    def forward(self, spatial_shape: SpatialShape | None = None) -> Tensor:
        height, width = self.window
        like = self.proj.weight
        high = torch.arange(1 - height, height, device=like.device)
        wide = torch.arange(1 - width, width, device=like.device)
        every = torch.cartesian_prod(high, wide).to(like.dtype)
        return self.of(every)[offsets_in(self.window, like.device)].permute(2, 0, 1)
