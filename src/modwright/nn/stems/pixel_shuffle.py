"""From features to a larger image in one step (arXiv 1609.05158)."""

from __future__ import annotations

from torch import nn

__all__ = ["PixelShuffleUp"]


class PixelShuffleUp(nn.Sequential):
    """A 3 x 3 convolution whose channels become the pixels of a ``scale`` x ``scale`` square.

    Args:
        dim: channels that come in.
        out_channels: of the image.
        scale: pixels per place along each side.

    Shapes:
        (B, dim, H, W) -> (B, out_channels, scale H, scale W).

    Example:
        >>> import torch
        >>> PixelShuffleUp(8, 3, 2)(torch.zeros(1, 8, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(self, dim: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(dim, out_channels * scale**2, 3, padding=1))
        self.add_module("shuffle", nn.PixelShuffle(scale))
