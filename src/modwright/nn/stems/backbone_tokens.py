"""Maps of several scales as one small set of tokens per cell of the coarsest (arXiv 2506.12982).

Axes: B images, P cells, T tokens of a cell, D channels. Maps come as a backbone gives them: the
finest first, each twice as coarse as the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape, to_tokens
from modwright.nn.stems.conv_stem import Conv, ConvStem

__all__ = [
    "ChannelToken",
    "MultiScalePatchTokens",
    "PointwiseProjection",
    "gather_regions",
    "naive_gather_regions",
    "region_positions",
]


def region_positions(shape: SpatialShape, factor: int, column_first: bool = False) -> Tensor:
    """Positions under each cell, by rows or columns: (P, factor ** 2) indices, row-major.

    Example:
        >>> region_positions((1, 2), 2, column_first=True).tolist()
        [[0, 4, 1, 5], [2, 6, 3, 7]]
    """
    height, width = shape
    positions = torch.arange(height * width * factor**2).view(1, 1, height * factor, -1)
    return gather_regions(positions, shape, column_first)[0, :, :, 0]


def gather_regions(x: Tensor, spatial_shape: SpatialShape, column_first: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, P, (H / grid height) ** 2, C): what lies under each cell."""
    (height, width), factor = spatial_shape, x.shape[2] // spatial_shape[0]
    if factor < 1 or x.shape[2:] != (factor * height, factor * width):
        raise ValueError(
            f"a feature map of {x.shape[2]} x {x.shape[3]} is no whole refinement of "
            f"{height} x {width} regions"
        )
    split = x.unflatten(3, (width, factor)).unflatten(2, (height, factor))
    order = (0, 2, 4, 5, 3, 1) if column_first else (0, 2, 4, 3, 5, 1)
    return split.permute(order).flatten(3, 4).flatten(1, 2)


def naive_gather_regions(
    x: Tensor, spatial_shape: SpatialShape, column_first: bool = False
) -> Tensor:
    """:func:`gather_regions` position by position."""
    factor = x.shape[2] // spatial_shape[0]
    positions = [(i, j) for i in range(factor) for j in range(factor)]
    if column_first:
        positions = [(j, i) for i, j in positions]
    regions = [
        torch.stack([x[:, :, r * factor + i, c * factor + j] for i, j in positions], dim=1)
        for r in range(spatial_shape[0])
        for c in range(spatial_shape[1])
    ]
    return torch.stack(regions, dim=1)


class PointwiseProjection(nn.Conv2d):
    """A 1 x 1 convolution that starts from Kaiming's normal distribution and almost no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=1e-6)


class MultiScalePatchTokens(nn.Module):
    """Projects each map, and gathers under every cell of the last one, the coarsest map first.

    One (B, C, H, W) per map -> (B, P, T, D), T = 1 + 4 + 16 + ... The map next to the coarsest goes
    down its columns, all others go along their rows, as the released code has it: positions that
    were learned for one order do not fit another.

    Example:
        >>> maps = [torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 4, 4)]
        >>> MultiScalePatchTokens([4, 6], 8)(maps).shape
        torch.Size([2, 16, 5, 8])
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(PointwiseProjection(width, dim) for width in channels)

    @property
    def tokens(self) -> int:
        """T."""
        return sum(4**step for step in range(len(self.projections)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        _check_count(features, self.projections)
        height, width = features[-1].shape[2:]
        found = []
        for step, (project, x) in enumerate(zip(reversed(self.projections), reversed(features))):
            wanted = (height * 2**step, width * 2**step)
            if x.shape[2:] != wanted:
                raise ValueError(
                    f"the map {step} before the last must be {wanted[0]} x {wanted[1]}, "
                    f"not {x.shape[2]} x {x.shape[3]}"
                )
            found.append(gather_regions(project(x), (height, width), column_first=step == 1))
        return torch.cat(found, dim=2)


class ChannelToken(nn.Module):
    """A token per cell of the channels of all maps: one (B, C, H, W) per map -> (B, P, 1, D).

    Each map passes as many strided convolutions as it takes, and a maximum over 2 x 2 last; the
    maps side by side then pass four convolutions with batch norm and ReLU.

    Example:
        >>> maps = [torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 4, 4)]
        >>> ChannelToken([4, 6], 8)(maps).shape
        torch.Size([2, 16, 1, 8])
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        deepest = len(channels) - 1
        self.shrink = nn.ModuleList(
            ConvStem(width, [Conv(width, 3, 2, 1)] * max(deepest - index - 1, 0))
            for index, width in enumerate(channels)
        )
        self.pool = nn.MaxPool2d(2)
        row = Conv(dim, 3, 1, 1, norm="bn2d", act="relu")
        self.merge = ConvStem(sum(channels), [row] * 4)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        _check_count(features, self.shrink)
        small = [self.pool(shrink(x)) for shrink, x in zip(self.shrink, features[:-1])]
        merged = self.merge(torch.cat([*small, features[-1]], dim=1))
        return to_tokens(merged)[:, :, None]


def _check_count(features: Sequence[Tensor], parts: nn.ModuleList) -> None:
    if len(features) != len(parts):
        raise ValueError(f"{len(parts)} maps are wanted, not {len(features)}")
