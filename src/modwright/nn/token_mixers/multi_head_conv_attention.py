"""A convolution between places, an activation, and a map of the channels (arXiv 2207.05501)."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import SpatialShape

__all__ = ["MultiHeadConvAttention"]


class MultiHeadConvAttention(nn.Module):
    """proj(act(conv x)), the last map without a bias.

    Args:
        dim: channels.
        conv: mixes places, and keeps the shape; grouped, it mixes few channels.
        act: name of the activation.

    Shapes:
        (B, C, H, W) -> the same.

    Example:
        >>> import torch
        >>> mixer = MultiHeadConvAttention(8, nn.Conv2d(8, 8, 3, padding=1, groups=2))
        >>> mixer(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int, conv: nn.Module, act: str = "relu") -> None:
        super().__init__()
        self.conv, self.act = conv, make_activation(act)
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        out: Tensor = self.proj(self.act(self.conv(x)))
        return out
