"""Attention inside windows of a map, which may be moved by half of their sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape
from modwright.nn.token_mixers.self_attention import SelfAttention
from modwright.nn.windows import (
    DynamicPositionBias,
    RelativePositionBias,
    join_windows,
    split_windows,
    wrapped_apart,
)

__all__ = ["RectangleWindowAttention", "WindowAttention", "naive_window_attention", "naive_windows"]


class WindowAttention(SelfAttention):
    """Positions of one window see each other, with a learned bias per offset (arXiv 2103.14030).

    (B, H W, C) with the grid (H, W) -> the same. With ``shift`` windows are moved by half of their
    sides. They wrap around the border of the map, and positions of opposite borders do not see each
    other; a map whose shorter side is no longer than the window is not moved. A map that is not
    made of whole windows is filled with zeros at its end, which take part.

    Example:
        >>> mixer = WindowAttention(8, 2, (2, 2), shift=True)
        >>> mixer(torch.zeros(1, 15, 8), (3, 5)).shape
        torch.Size([1, 15, 8])
    """

    bias: RelativePositionBias

    def __init__(
        self, dim: int, num_heads: int, window: SpatialShape, *, shift: bool = False, **more: Any
    ) -> None:
        bias = RelativePositionBias(num_heads, window)  # before the maps: the order of its draws
        super().__init__(dim, num_heads, **more)
        self.bias, self.window, self.shift = bias, window, shift

    def steps(self, spatial_shape: SpatialShape) -> SpatialShape:
        """By how many positions windows are moved on a map of ``spatial_shape``."""
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
        bias = self.bias()[None]  # the fused kernel wants four axes
        if any(steps):
            apart = wrapped_apart(spatial_shape, self.window, steps, x.device)[:, None]
            images = x.shape[0] // apart.shape[0]
            bias = bias.masked_fill(apart, float("-inf"))
            bias = bias[None].expand(images, -1, -1, -1, -1).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.finish(mixed.transpose(1, 2).flatten(2))


def naive_window_attention(part: WindowAttention, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
    """What the part gives on whole windows: all positions at once, scores of others cut."""
    high, wide = part.window
    cut, i, j = _naive_windows(spatial_shape, part.window, part.steps(spatial_shape), True)
    offset = (i[:, None] - i + high - 1) * (2 * wide - 1) + j[:, None] - j + wide - 1
    table = part.bias.position_table
    out = []
    for head, (q, k, v) in enumerate(zip(*(side.unbind(1) for side in part.heads(x)))):
        scores = q @ k.transpose(1, 2) * part.scale + table[offset, head]
        out.append(scores.masked_fill(cut, float("-inf")).softmax(-1) @ v)
    return part.finish(torch.cat(out, -1))


class RectangleWindowAttention(SelfAttention):
    """Half of the heads sees windows of ``window``, half of its transpose (arXiv 2308.05022).

    (B, H W, C) with the grid (H, W), both multiples of both sides of the window -> the same. Values
    also pass a convolution per channel, which carries what lies across a border; it is added before
    the last map.

    Args:
        shift: windows are moved by half of their sides; those at the border wrap around.
        mask_shift: in wrapped windows, positions of opposite borders do not see each other. The
            published models do without.
        position_dim: width of the network of position biases; None is that of the published
            models, dim / 32 rounded down.

    Example:
        >>> mixer = RectangleWindowAttention(32, 4, (2, 4), shift=True)
        >>> mixer(torch.zeros(1, 32, 32), (4, 8)).shape
        torch.Size([1, 32, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: SpatialShape,
        *,
        shift: bool = False,
        mask_shift: bool = False,
        position_dim: int | None = None,
    ) -> None:
        if num_heads % 2:
            raise ValueError(f"two kinds of windows share the heads: {num_heads} is odd")
        super().__init__(dim, num_heads)
        high, wide = window
        self.windows: tuple[SpatialShape, SpatialShape] = ((high, wide), (wide, high))
        self.shift, self.mask_shift = shift, mask_shift
        width = dim // 2 // 4 // 4 if position_dim is None else position_dim
        if width < 1:
            raise ValueError(
                f"a width of {dim} leaves no channel to the network of positions: "
                "take at least 32, or say position_dim"
            )
        self.biases = nn.ModuleList(
            DynamicPositionBias(width, num_heads // 2, size) for size in self.windows
        )
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    @property
    def narrowing_blocker(self) -> str:
        return "half of its heads has windows of another shape, and each a position bias"

    def steps(self, window: SpatialShape) -> SpatialShape:
        """By how many positions windows are moved."""
        return (window[0] // 2, window[1] // 2) if self.shift else (0, 0)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spatial_shape: SpatialShape | None = None
    ) -> Tensor:
        if spatial_shape is None:
            raise ValueError("windows need the grid of the tokens")
        qkv = torch.stack((q, k, v)).unflatten(3, spatial_shape)
        mixed = [
            self._in_windows(half, bias(), window, spatial_shape)
            for half, bias, window in zip(qkv.chunk(2, dim=2), self.biases, self.windows)
        ]
        return torch.cat(mixed, dim=1).flatten(2, 3).transpose(1, 2).flatten(2)

    def _in_windows(
        self, qkv: Tensor, bias: Tensor, window: SpatialShape, spatial_shape: SpatialShape
    ) -> Tensor:
        """(3, B, heads, H, W, d) -> (B, heads, H, W, d)."""
        down, along = self.steps(window)
        if self.shift:
            qkv = qkv.roll((-down, -along), (3, 4))
        windows = split_windows(qkv.flatten(0, 1), window)
        q, k, v = windows.unflatten(0, (3, -1)).flatten(1, 2).unbind(0)
        bias = bias[None]  # the fused kernel and ONNX want four axes
        if self.shift and self.mask_shift:
            apart = wrapped_apart(spatial_shape, window, (down, along), bias.device)[:, None]
            bias = bias.masked_fill(apart, float("-inf")).repeat(qkv.shape[1], 1, 1, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        mixed = mixed.unflatten(0, (qkv.shape[1], -1))
        joined = join_windows(mixed, window, spatial_shape)
        return joined.roll((down, along), (2, 3)) if self.shift else joined


def naive_windows(part: RectangleWindowAttention, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
    """What the part gives, head by head over all positions at once, scores of others cut."""
    q, k, v = part.heads(x)
    out, half = [], part.num_heads // 2
    for head in range(part.num_heads):
        window, bias = part.windows[head // half], part.biases[head // half]
        cut, i, j = _naive_windows(spatial_shape, window, part.steps(window), part.mask_shift)
        offsets = torch.stack((i[:, None] - i, j[:, None] - j), -1).to(x.dtype)
        added = bias.of(offsets)[..., head % half]  # type: ignore[operator]
        scores = q[:, head] @ k[:, head].transpose(1, 2) * part.scale + added
        out.append(scores.masked_fill(cut, float("-inf")).softmax(-1) @ v[:, head])
    values = v.transpose(2, 3).reshape(len(x), -1, *spatial_shape)
    near = part.local(values).flatten(2).transpose(1, 2)  # type: ignore[misc]
    return part.finish(torch.cat(out, -1) + near)


def _naive_windows(
    spatial_shape: SpatialShape, window: SpatialShape, steps: SpatialShape, wrapped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions do not see each other, and the row and column of each inside its window.

    Positions are moved by their coordinates, not by moving the map.
    """
    (height, width), (down, along) = spatial_shape, steps
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    i, j = (rows - down) % height, (columns - along) % width
    seen = [i // window[0], j // window[1]]
    if wrapped:
        seen += [rows < down, columns < along]
    cut = torch.stack([kind[:, None] != kind for kind in seen]).any(0)
    return cut, i % window[0], j % window[1]
