"""Positions of a grid, resized to other grids, and learned tokens before those of its positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import SpatialShape

__all__ = [
    "LearnedGrid",
    "LearnedTable",
    "PrefixTokens",
    "resize_grid",
    "resize_table",
    "sinusoids",
]


def resize_grid(table: Tensor, size: SpatialShape, antialias: bool = True) -> Tensor:
    """(1, C, H, W) -> (1, C, *size), bicubic, in float32.

    Example:
        >>> resize_grid(torch.ones(1, 4, 7, 7), (8, 6)).shape
        torch.Size([1, 4, 8, 6])
    """
    if table.shape[-2:] == torch.Size(size):
        return table
    kept = F.interpolate(table.float(), size=size, mode="bicubic", antialias=antialias)
    return kept.to(table.dtype)


def resize_table(
    table: Tensor, old: SpatialShape, new: SpatialShape, prefix: int = 0, antialias: bool = True
) -> Tensor:
    """(1, prefix + H W, C) for the grid ``old`` -> the same for ``new``; prefix rows stay."""
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(
            f"a table of {table.shape[1]} rows is not one of {prefix} and {old[0]} x {old[1]}"
        )
    rows = table[:, prefix:].transpose(1, 2).unflatten(2, old)
    resized = resize_grid(rows, new, antialias).flatten(2).transpose(1, 2)
    return torch.cat((table[:, :prefix], resized), dim=1)


def sinusoids(length: int, dim: int) -> Tensor:
    """(1, length, dim): sines in even channels, cosines in odd ones, of pos / 10000^(2i / dim).

    Computed in float64, given in float32.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    channel = torch.arange(dim, dtype=torch.float64)[None]
    angle = position / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    even = (torch.arange(dim) % 2 == 0)[None]
    return torch.where(even, angle.sin(), angle.cos()).float()[None]


class LearnedGrid(nn.Module):
    """Adds a learned map for ``spatial_shape``, resized to the grid of (B, C, H, W)."""

    no_weight_decay = ("table",)

    def __init__(self, dim: int, spatial_shape: SpatialShape) -> None:
        super().__init__()
        self.spatial_shape = spatial_shape
        self.table = nn.Parameter(torch.empty(1, dim, *spatial_shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_grid(self.table, (x.shape[2], x.shape[3]))

    def fit(self, table: Tensor, old: SpatialShape | None = None) -> Tensor:
        """A table of another grid, resized to this one's."""
        return resize_grid(table, self.spatial_shape)


class LearnedTable(nn.Module):
    """Adds a learned row per token to (B, prefix + N, C); rows of prefix tokens come first.

    The rows of the positions are resized where the grid is not ``spatial_shape``. A ``fixed`` table
    holds :func:`sinusoids` and is not trained; a learned one starts with ``std``.
    """

    no_weight_decay = ("table",)

    def __init__(
        self,
        dim: int,
        spatial_shape: SpatialShape,
        prefix: int = 0,
        antialias: bool = True,
        fixed: bool = False,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.spatial_shape, self.prefix, self.antialias = spatial_shape, prefix, antialias
        self.fixed, self.std = fixed, std
        length = prefix + spatial_shape[0] * spatial_shape[1]
        self.table = nn.Parameter(torch.empty(1, length, dim), requires_grad=not fixed)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self.fixed:
            nn.init.trunc_normal_(self.table, std=self.std)
        elif not self.table.is_meta:
            with torch.no_grad():
                self.table.copy_(sinusoids(*self.table.shape[1:]))

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        if spatial_shape == self.spatial_shape:
            return x + self.table
        return x + resize_table(
            self.table, self.spatial_shape, spatial_shape, self.prefix, self.antialias
        )

    def fit(self, table: Tensor, old: SpatialShape | None = None) -> Tensor:
        """A table of another grid, a square one unless ``old`` says it, resized to this one's."""
        if old is None:
            count = table.shape[1] - self.prefix
            side = math.isqrt(count)
            if side * side != count:
                raise ValueError(f"{count} positions are no square grid: say which grid they are")
            old = (side, side)
        return resize_table(table, old, self.spatial_shape, self.prefix, self.antialias)


class PrefixTokens(nn.Module):
    """Puts learned tokens in front, each a parameter: (B, N, C) -> (B, len(names) + N, C).

    Names that end with ``_token`` are spared from decay.

    Example:
        >>> PrefixTokens(8, ["cls_token"])(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 6, 8])
    """

    def __init__(self, dim: int, names: Sequence[str] = ("cls_token",), std: float = 0.02) -> None:
        super().__init__()
        if len(set(names)) < len(names):
            raise ValueError(f"two prefix tokens have one name: {', '.join(names)}")
        self.names, self.std = tuple(names), std
        for name in self.names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for token in self.parameters():
            nn.init.trunc_normal_(token, std=self.std)

    def forward(self, x: Tensor) -> Tensor:
        prefix = [self.get_parameter(name).expand(x.shape[0], -1, -1) for name in self.names]
        return torch.cat((*prefix, x), dim=1)

    def extra_repr(self) -> str:
        return ", ".join(self.names)
