"""Convolutional backbones that give one map per stage, the finest first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from modwright.nn.block import BlockSequence, DropPath, Stage
from modwright.nn.layouts import SpatialShape
from modwright.nn.stems.conv_stem import Conv, ConvStem

__all__ = ["BRANCHES", "ConvBackbone", "FanOutConv", "ResNetBlock", "ResNetStages"]


class ConvBackbone(nn.Module):
    """Stages of two convolutions each, with batch norm and ReLU; each but the first halves the map.

    (B, C, H, W) -> one map per stage. The first stage has the stride ``first_stride``.

    Example:
        >>> maps = ConvBackbone(3, [4, 8])(torch.zeros(1, 3, 8, 8))
        >>> [tuple(found.shape[1:]) for found in maps]
        [(4, 8, 8), (8, 4, 4)]
    """

    def __init__(self, in_channels: int, widths: Sequence[int], first_stride: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        stride = first_stride
        for width in widths:
            rows = [_row(width, 3, step, "relu") for step in (stride, 1)]
            self.stages.append(ConvStem(in_channels, rows))
            in_channels, stride = width, 2

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [x]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]


class FanOutConv(nn.Conv2d):
    """A convolution that starts from Kaiming's normal distribution for what goes out."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _basic(width: int, stride: int) -> list[Conv]:
    return [_row(width, 3, stride, "relu"), _row(width, 3, 1)]


def _bottleneck(width: int, stride: int) -> list[Conv]:
    """The middle one strides, so that no position goes unread; in the paper the first one does."""
    narrow = width // 4
    return [_row(narrow, 1, 1, "relu"), _row(narrow, 3, stride, "relu"), _row(width, 1, 1)]


def _row(width: int, kernel: int, stride: int, act: str = "identity") -> Conv:
    return Conv(width, kernel, stride, kernel // 2, bias=False, norm="bn2d", act=act)


# The convolutions of a block's branch, from its width and stride.
BRANCHES = {"basic": _basic, "bottleneck": _bottleneck}


class ResNetBlock(nn.Module):
    """act(shortcut(x) + branch(x)): (B, C, H, W) -> (B, C', H / stride, W / stride).

    The shortcut is x where its channels and size stay, else a 1 x 1 convolution with batch norm.
    ``rows`` are the branch's convolutions, of which the last has no activation.

    Example:
        >>> ResNetBlock(4, BRANCHES["basic"](8, 2))(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, in_channels: int, rows: Sequence[Conv], drop_path: float = 0.0) -> None:
        super().__init__()
        out, stride = rows[-1].out, math.prod(row.stride for row in rows)
        self.branch = ConvStem(in_channels, rows, FanOutConv)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out:
            self.shortcut = ConvStem(in_channels, [_row(out, 1, stride)], FanOutConv)
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU(inplace=True)  # nothing else reads the sum

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        branch = self.drop_path(self.branch(x))
        return self.act(branch + (x if self.shortcut is None else self.shortcut(x)))


class ResNetStages(nn.Module):
    """A stem that makes one position of 4 x 4 pixels, and stages of blocks (arXiv 1512.03385).

    (B, C, H, W) -> one map per stage; every stage but the first halves the map.

    Args:
        branch: a name of :data:`BRANCHES`; widths are multiples of 4 for "bottleneck".
        drop_path: rates of stochastic depth, a list per stage; none unless they are said.

    Example:
        >>> pyramid = ResNetStages(3, [8, 16], [1, 1], stem_width=4)
        >>> [tuple(found.shape[1:]) for found in pyramid(torch.zeros(1, 3, 32, 32))]
        [(8, 8, 8), (16, 4, 4)]
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        branch: str = "basic",
        stem_width: int = 64,
        drop_path: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if branch not in BRANCHES:
            raise ValueError(f"unknown branch {branch!r}; valid values: {', '.join(BRANCHES)}")
        if len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths for {len(widths)} widths")
        self.stem = ConvStem(in_channels, [_row(stem_width, 7, 2, "relu")], FanOutConv)
        self.stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        before = stem_width
        for s, (width, depth) in enumerate(zip(widths, depths)):
            rates = [0.0] * depth if drop_path is None else drop_path[s]
            blocks: list[nn.Module] = []
            for b, rate in enumerate(rates):
                stride = 2 if s and not b else 1
                blocks.append(ResNetBlock(before, BRANCHES[branch](width, stride), rate))
                before = width
            self.stages.append(Stage(BlockSequence(blocks)))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]
