"""Windows of a map: partition and merge, offsets of positions, biases for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modwright.nn.grid_positions import resize_grid
from modwright.nn.layouts import SpatialShape

__all__ = [
    "DynamicPositionBias",
    "RelativePositionBias",
    "join_windows",
    "offsets_in",
    "split_windows",
    "wrapped_apart",
]


def split_windows(x: Tensor, window: SpatialShape) -> Tensor:
    """(B, heads, H, W, d) -> (B, windows, heads, positions of a window, d), all row by row.

    Example:
        >>> split_windows(torch.zeros(1, 2, 4, 8, 3), (2, 4)).shape
        torch.Size([1, 4, 2, 8, 3])
    """
    batch, heads, height, width, dim = x.shape
    high, wide = window
    if height % high or width % wide:
        raise ValueError(
            f"a map of {height} x {width} is not made of whole windows of {high} x {wide}"
        )
    x = x.view(batch, heads, height // high, high, width // wide, wide, dim)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch, -1, heads, high * wide, dim)


def join_windows(x: Tensor, window: SpatialShape, spatial_shape: SpatialShape) -> Tensor:
    """What :func:`split_windows` took apart, for a map of ``spatial_shape``."""
    batch, _, heads, _, dim = x.shape
    high, wide = window
    x = x.view(batch, spatial_shape[0] // high, spatial_shape[1] // wide, heads, high, wide, dim)
    return x.permute(0, 3, 1, 4, 2, 5, 6).reshape(batch, heads, *spatial_shape, dim)


def offsets_in(window: SpatialShape, device: torch.device | None = None) -> Tensor:
    """Which offset two positions of a window have: (T, T) indices, a row per query.

    There are (2 h - 1) (2 w - 1), counted row by row; the first is that of a query in the first
    position and a key in the last.

    Example:
        >>> offsets_in((1, 2)).tolist()
        [[1, 0], [2, 1]]
    """
    height, width = window
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    down = rows[:, None] - rows + height - 1
    along = columns[:, None] - columns + width - 1
    return down * (2 * width - 1) + along


def wrapped_apart(
    spatial_shape: SpatialShape,
    window: SpatialShape,
    steps: SpatialShape,
    device: torch.device | None = None,
) -> Tensor:
    """Which positions of a window only wrapping brings together: (windows, T, T) truth values.

    The map was rolled ``steps`` positions up and to the left.

    Example:
        >>> wrapped_apart((1, 4), (1, 2), (0, 1))[1].tolist()
        [[False, True], [True, False]]
    """
    rows, columns = (
        torch.arange(side, device=device) >= side - step for side, step in zip(spatial_shape, steps)
    )
    kind = (2 * rows.long()[:, None] + columns.long()).view(1, 1, *spatial_shape, 1)
    kind = split_windows(kind, window)[0, :, 0, :, 0]
    return kind[:, :, None] != kind[:, None, :]


class RelativePositionBias(nn.Module):
    """A learned number per offset and head (arXiv 2103.14030); equal offsets share it.

    Gives (heads, T, T) for the T positions of a window: what is added to a query's (row) scores.

    Example:
        >>> RelativePositionBias(2, (2, 4))().shape
        torch.Size([2, 8, 8])
    """

    no_weight_decay = ("position_table",)

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
        """A table of another window, resized to this one's; a square unless ``old`` says it."""
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


class DynamicPositionBias(nn.Module):
    """The same from a small network of width ``dim`` (arXiv 2308.05022, behind 2108.00154).

    With ``dim`` 1 the layer norms see a single number and give their bias whatever it is, so all
    offsets get the same and the softmax does not see it. Published models are built like that.

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
