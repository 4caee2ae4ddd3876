"""A gated MLP on maps with a depthwise convolution inside (arXiv 2111.09881)."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import SpatialShape

__all__ = ["GatedDepthwise"]


class GatedDepthwise(nn.Module):
    """fc2(act(u) g), u and g the halves of a depthwise 3 x 3 convolution of fc1 x; no biases.

    Args:
        dim: channels.
        hidden: neurons, each with a gate.
        act: name of the activation.

    Shapes:
        (B, C, H, W) -> the same.

    Example:
        >>> import torch
        >>> GatedDepthwise(8, 21)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int, hidden: int, act: str = "gelu") -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {hidden}")
        both = 2 * hidden
        self.fc1 = nn.Conv2d(dim, both, 1, bias=False)
        self.conv = nn.Conv2d(both, both, 3, padding=1, groups=both, bias=False)
        self.act = make_activation(act)
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        value, gate = self.conv(self.fc1(x)).chunk(2, dim=1)
        out: Tensor = self.fc2(self.act(value) * gate)
        return out
