"""A small convolutional backbone that gives a map per stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from modwright.nn.stems.conv_stem import Conv, ConvStem

__all__ = ["ConvBackbone"]


class ConvBackbone(nn.Module):
    """Stages of two convolutions each, with batch norm and ReLU; each stage halves the map.

    Args:
        in_channels: of the image.
        widths: channels of each stage.
        first_stride: of the first stage, which halves nothing unless it is said.

    Shapes:
        (B, C, H, W) -> one map per stage, the finest first.

    Example:
        >>> import torch
        >>> maps = ConvBackbone(3, [4, 8])(torch.zeros(1, 3, 8, 8))
        >>> [tuple(found.shape[1:]) for found in maps]
        [(4, 8, 8), (8, 4, 4)]
    """

    def __init__(self, in_channels: int, widths: Sequence[int], first_stride: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        stride = first_stride
        for width in widths:
            rows = [
                Conv(width, 3, step, 1, bias=False, norm="bn2d", act="relu") for step in (stride, 1)
            ]
            self.stages.append(ConvStem(in_channels, rows))
            in_channels, stride = width, 2

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found
