"""Ghost features: some channels are only scaled copies of others (arXiv 1911.11907, 2101.11986)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import SpatialShape

__all__ = ["ChannelScale", "GhostLinear", "GhostMlp"]


class ChannelScale(nn.Module):
    """A learned factor per channel, what a convolution per channel with one hook point is.

    It starts as that convolution would, evenly between -1 and 1.

    Args:
        dim: channels.

    Shapes:
        (..., C) -> the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GhostLinear(nn.Module):
    """A linear layer to half of the channels; the other half are those, scaled.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out, an even number.
        bias: of the map.

    Shapes:
        (..., in) -> (..., out).

    Raises:
        ValueError: the channels that go out have no half.

    Example:
        >>> GhostLinear(8, 6)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 6])
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"half of the channels are ghosts: {out_channels} is odd")
        self.primary = nn.Linear(in_channels, out_channels // 2, bias=bias)
        self.cheap = ChannelScale(out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.primary(x)
        return torch.cat((kept, self.cheap(kept)), dim=-1)


class GhostMlp(nn.Module):
    """An MLP with three neurons per channel, of which two are scaled copies of the first.

    u = act(fc1 x); fc2 of u, act(a u) and act(b u) side by side.

    Args:
        dim: channels.
        act: name of the activation.
        drop: dropout before and behind fc2.

    Shapes:
        (B, N, C) -> the same.

    Example:
        >>> GhostMlp(8)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"

    def __init__(self, dim: int, *, act: str = "gelu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.cheap1, self.cheap2 = ChannelScale(dim), ChannelScale(dim)
        self.act = make_activation(act)
        self.fc2 = nn.Linear(3 * dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        kept = self.act(self.fc1(x))
        ghosts = self.act(self.cheap1(kept)), self.act(self.cheap2(kept))
        out: Tensor = self.drop(self.fc2(self.drop(torch.cat((kept, *ghosts), dim=-1))))
        return out
