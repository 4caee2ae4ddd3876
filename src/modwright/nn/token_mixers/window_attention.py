"""Attention inside square windows, every second time moved by half of them (arXiv 2103.14030)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape
from modwright.nn.relative_position_bias import RelativePositionBias
from modwright.nn.token_mixers.self_attention import SelfAttention
from modwright.nn.windows import join_windows, split_windows, wrapped_apart

__all__ = ["WindowAttention", "naive_window_attention"]


class WindowAttention(SelfAttention):
    """Places of one window see each other, with a learned bias per offset.

    Moved windows wrap around the border of the map, and places of opposite borders do not see each
    other. A map whose shorter side is no longer than the window is not moved. A map that is not
    made of whole windows is filled with zeros at its end, which take part.

    Args:
        dim: channels.
        num_heads: heads.
        window: (height, width) in places.
        shift: windows are moved by half of their sides.
        more: of :class:`SelfAttention`.

    Shapes:
        (B, H W, C) with the grid (H, W) -> the same.

    Example:
        >>> mixer = WindowAttention(8, 2, (2, 2), shift=True)
        >>> mixer(torch.zeros(1, 15, 8), (3, 5)).shape
        torch.Size([1, 15, 8])
    """

    def __init__(
        self, dim: int, num_heads: int, window: SpatialShape, *, shift: bool = False, **more: Any
    ) -> None:
        bias = RelativePositionBias(num_heads, window)
        super().__init__(dim, num_heads, **more)
        self.bias = bias
        self.window, self.shift = window, shift

    def steps(self, spatial_shape: SpatialShape) -> SpatialShape:
        """By how many places windows are moved on a map of ``spatial_shape``."""
        high, wide = self.window
        moved = self.shift and min(spatial_shape) > min(high, wide)
        return (high // 2, wide // 2) if moved else (0, 0)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        if spatial_shape is None:
            raise ValueError("windows need the grid of the tokens")
        steps = self.steps(spatial_shape)
        positions = x.unflatten(1, spatial_shape)
        down, along = (-side % window for side, window in zip(spatial_shape, self.window))
        if down or along:
            positions = F.pad(positions, (0, 0, 0, along, 0, down))
        full = (spatial_shape[0] + down, spatial_shape[1] + along)
        if any(steps):
            positions = positions.roll((-steps[0], -steps[1]), (1, 2))
        windows = split_windows(positions[:, None], self.window)
        mixed = self._in_windows(windows.flatten(0, 2), full, steps)
        positions = join_windows(mixed.view_as(windows), self.window, full)[:, 0]
        if any(steps):
            positions = positions.roll(steps, (1, 2))
        if down or along:
            positions = positions[:, : spatial_shape[0], : spatial_shape[1]]
        return positions.flatten(1, 2)

    def _in_windows(self, x: Tensor, spatial_shape: SpatialShape, steps: SpatialShape) -> Tensor:
        """(B windows, T, C) -> the same."""
        q, k, v = self.heads(x)
        assert self.bias is not None
        bias: Tensor = self.bias()[None]  # the fused kernel wants four axes
        if any(steps):
            apart = wrapped_apart(spatial_shape, self.window, steps, x.device)[:, None]
            images = x.shape[0] // apart.shape[0]
            bias = bias.masked_fill(apart, float("-inf"))
            bias = bias[None].expand(images, -1, -1, -1, -1).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.finish(mixed.transpose(1, 2).flatten(2))


def naive_window_attention(part: WindowAttention, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
    """What the part gives on a map of whole windows: all places at once, scores of others cut.

    Places are moved by their coordinates, not by moving the map.
    """
    high, wide = part.window
    down, along = part.steps(spatial_shape)
    rows = torch.arange(spatial_shape[0]).repeat_interleave(spatial_shape[1])
    columns = torch.arange(spatial_shape[1]).repeat(spatial_shape[0])
    i, j = (rows - down) % spatial_shape[0], (columns - along) % spatial_shape[1]
    seen = torch.stack((i // high, j // wide, rows < down, columns < along))
    cut = (seen[:, :, None] != seen[:, None, :]).any(0)
    i, j = i % high, j % wide
    offset = (i[:, None] - i + high - 1) * (2 * wide - 1) + j[:, None] - j + wide - 1
    table: Any = part.bias.position_table  # type: ignore[union-attr]
    out = []
    for head, (q, k, v) in enumerate(zip(*(side.unbind(1) for side in part.heads(x)))):
        scores = q @ k.transpose(1, 2) * part.scale + table[offset, head]
        out.append(scores.masked_fill(cut, float("-inf")).softmax(-1) @ v)
    return part.finish(torch.cat(out, -1))
