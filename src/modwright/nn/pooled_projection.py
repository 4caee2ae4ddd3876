"""To another number of channels, and to a coarser map, without overlap (arXiv 2207.05501)."""

from __future__ import annotations

from torch import nn

__all__ = ["PooledProjection"]


class PooledProjection(nn.Sequential):
    """The mean of ``stride`` x ``stride`` places, a 1 x 1 convolution, a batch norm.

    At the border of a map that has no whole squares, the mean is over the places that are there.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 1 has no mean.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).

    Example:
        >>> import torch
        >>> PooledProjection(8, 16, 2)(torch.zeros(1, 8, 5, 4)).shape
        torch.Size([1, 16, 3, 2])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        if stride > 1:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.add_module("pool", pool)
        self.add_module("conv", nn.Conv2d(inputs, outputs, 1, bias=False))
        self.add_module("norm", nn.BatchNorm2d(outputs))
