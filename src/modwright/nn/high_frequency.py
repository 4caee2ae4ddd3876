"""Detail by convolution and by local maxima, half of the channels each (arXiv 2308.05022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import SpatialShape

__all__ = ["HighFrequencyBlock"]


class HighFrequencyBlock(nn.Module):
    """x + proj of a 3 x 3 convolution of one half, and a mapped maximum over 3 x 3 of the other.

    Args:
        dim: channels, an even number.
        act: name of the activation behind both halves.

    Shapes:
        (B, C, H, W) -> the same.

    Raises:
        ValueError: an odd number of channels.

    Example:
        >>> HighFrequencyBlock(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int, act: str = "gelu") -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"two branches share the channels: {dim} is odd")
        half = dim // 2
        self.conv = nn.Conv2d(half, half, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.fc = nn.Conv2d(half, half, 1)
        self.act = make_activation(act)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        first, second = x.chunk(2, dim=1)
        both = (self.act(self.conv(first)), self.act(self.fc(self.pool(second))))
        out: Tensor = x + self.proj(torch.cat(both, dim=1))
        return out
