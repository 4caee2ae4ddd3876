"""Attention inside lying and standing windows, half of the heads each (arXiv 2308.05022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.dynamic_position_bias import DynamicPositionBias
from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.token_mixers.self_attention import SelfAttention
from modwright.nn.windows import join_windows, split_windows, wrapped_apart

__all__ = ["RectangleWindowAttention", "naive_windows"]


class RectangleWindowAttention(SelfAttention):
    """The first half of the heads sees windows of ``window``, the second half of its transpose.

    Values also pass a convolution per channel, which carries what lies across a border; it is
    added before the last map.

    Args:
        dim: channels.
        num_heads: heads, an even number.
        window: (height, width) in places.
        shift: windows are moved by half of their sides; those at the border wrap around.
        mask_shift: in wrapped windows, places of opposite borders do not see each other. The
            published models do without.
        position_dim: width of the network of position biases; None is that of the published
            models, dim / 32 rounded down.

    Shapes:
        (B, H W, C) with the grid (H, W), both multiples of both sides of the window -> the same.

    Raises:
        ValueError: an odd number of heads, a width of positions of 0, or a map that is not made of
            whole windows.

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

    def steps(self, window: SpatialShape) -> SpatialShape:
        """By how many places windows are moved."""
        return (window[0] // 2, window[1] // 2) if self.shift else (0, 0)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        if spatial_shape is None:
            raise ValueError("windows need the grid of the tokens")
        q, k, v = self.heads(x)
        stacked = torch.stack((q, k, v)).unflatten(3, spatial_shape)
        halves = zip(stacked.chunk(2, dim=2), self.biases, self.windows)
        mixed = torch.cat(
            [
                self._in_windows(half, bias(), window, spatial_shape)
                for half, bias, window in halves
            ],
            dim=1,
        )
        tokens = mixed.flatten(2, 3).transpose(1, 2).flatten(2)
        near = to_tokens(self.local(to_feature_map(v.transpose(1, 2).flatten(2), spatial_shape)))
        return self.finish(tokens + near)

    def _in_windows(
        self, qkv: Tensor, bias: Tensor, window: SpatialShape, spatial_shape: SpatialShape
    ) -> Tensor:
        """(3, B, heads, H, W, d) -> (B, heads, H, W, d)."""
        down, along = self.steps(window)
        if self.shift:
            qkv = qkv.roll((-down, -along), (3, 4))
        q, k, v = (split_windows(part, window) for part in qkv.unbind(0))
        if self.shift and self.mask_shift:
            bias = bias + self._apart(window, spatial_shape, bias)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        joined = join_windows(mixed, window, spatial_shape)
        return joined.roll((down, along), (2, 3)) if self.shift else joined

    def _apart(self, window: SpatialShape, spatial_shape: SpatialShape, like: Tensor) -> Tensor:
        """(windows, 1, T, T): minus infinity between places that only wrapping brings together."""
        apart = wrapped_apart(spatial_shape, window, self.steps(window), like.device)[:, None]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, float("-inf"))


def naive_windows(part: RectangleWindowAttention, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
    """What the part gives, head by head over all places at once: scores of other windows are cut.

    Places are moved by their coordinates, not by moving the map.
    """
    q, k, v = part.heads(x)
    rows = torch.arange(spatial_shape[0]).repeat_interleave(spatial_shape[1])
    columns = torch.arange(spatial_shape[1]).repeat(spatial_shape[0])
    out = []
    for head in range(part.num_heads):
        second = int(head >= part.num_heads // 2)
        window, bias = part.windows[second], part.biases[second]
        down, along = part.steps(window)
        i, j = (rows - down) % spatial_shape[0], (columns - along) % spatial_shape[1]
        block = i // window[0] * spatial_shape[1] + j // window[1]
        cut = block[:, None] != block
        if part.mask_shift:
            kind = 2 * (rows < down).long() + (columns < along).long()
            cut = cut | (kind[:, None] != kind)
        i, j = i % window[0], j % window[1]
        offsets = torch.stack((i[:, None] - i, j[:, None] - j), -1).to(x.dtype)
        added = bias.of(offsets)[..., head % (part.num_heads // 2)]  # type: ignore[operator]
        scores = q[:, head] @ k[:, head].transpose(1, 2) * part.scale + added
        out.append(scores.masked_fill(cut, float("-inf")).softmax(-1) @ v[:, head])
    stacked = v.transpose(1, 2).flatten(2).transpose(1, 2).reshape(len(x), -1, *spatial_shape)
    near: Tensor = part.local(stacked).flatten(2).transpose(1, 2)
    return part.finish(torch.cat(out, -1) + near)
