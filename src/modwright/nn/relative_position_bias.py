"""A learned bias of attention per offset of two places in a window (arXiv 2103.14030)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modwright.nn.grid_positions import resize_grid
from modwright.nn.layouts import SpatialShape
from modwright.nn.windows import offsets_in

__all__ = ["RelativePositionBias"]


class RelativePositionBias(nn.Module):
    """A table with a number per offset and head; equal offsets share it.

    Args:
        num_heads: heads.
        window: (height, width) of the window; its places go row by row.

    Shapes:
        nothing -> (heads, T, T) for the T places of the window: what a query (row) adds to the
        score of a key (column).

    Example:
        >>> RelativePositionBias(2, (2, 4))().shape
        torch.Size([2, 8, 8])
    """

    def __init__(self, num_heads: int, window: SpatialShape) -> None:
        super().__init__()
        self.window = window
        high, wide = window
        self.position_table = nn.Parameter(torch.empty((2 * high - 1) * (2 * wide - 1), num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.position_table, std=0.02)

    def forward(self, spatial_shape: SpatialShape | None = None) -> Tensor:
        index = offsets_in(self.window, self.position_table.device)
        rows = self.position_table.T.index_select(1, index.flatten())
        return rows.unflatten(1, index.shape)

    def fit(self, table: Tensor, old: SpatialShape | None = None) -> Tensor:
        """A table of another window, resized to this one's; a square unless ``old`` says it.

        Raises:
            ValueError: its offsets are no square, and no window is given.
        """
        if old is None:
            side = math.isqrt(len(table))
            if side * side != len(table):
                raise ValueError(f"{len(table)} offsets are no square: say which window they are")
            sides = (side, side)
        else:
            sides = (2 * old[0] - 1, 2 * old[1] - 1)
        high, wide = self.window
        rows = table.T.unflatten(1, sides)[None]
        return resize_grid(rows, (2 * high - 1, 2 * wide - 1), antialias=False)[0].flatten(1).T
