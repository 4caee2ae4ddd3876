"""Windows of a map: taking it apart and putting it together, offsets of places, wrapped borders."""

from __future__ import annotations

import torch
from torch import Tensor

from modwright.nn.layouts import SpatialShape

__all__ = ["join_windows", "offsets_in", "split_windows", "wrapped_apart"]


def split_windows(x: Tensor, window: SpatialShape) -> Tensor:
    """(B, heads, H, W, d) -> (B, windows, heads, places of a window, d), all row by row.

    Raises:
        ValueError: the map is not made of whole windows.

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
    """Which offset two places of a window have: (T, T) indices, a row per query.

    There are (2 h - 1) (2 w - 1), counted row by row; the first is that of a query in the first
    place and a key in the last.

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
    """Which places of a window only wrapping brings together: (windows, T, T), true where it does.

    Args:
        spatial_shape: of the map, made of whole windows.
        window: (height, width).
        steps: by how many places the map was rolled up and to the left.

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
