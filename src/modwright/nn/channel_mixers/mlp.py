"""The MLP of vision models, on tokens or on maps, with a convolution inside if one is wanted."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import Layout, SpatialShape, call_in_layout

__all__ = ["LINEAR", "Mlp", "ResidualDepthwiseConv"]


def _conv1x1(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


# A linear layer of the channels in each layout; the weights are the same numbers.
LINEAR: dict[str, Callable[..., nn.Module]] = {"tokens": nn.Linear, "map": _conv1x1}


class ResidualDepthwiseConv(nn.Module):
    """u + conv(u), the convolution per channel (arXiv 2307.08579).

    Shapes:
        (B, C, H, W) -> the same.
    """

    layout = "map"

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


class Mlp(nn.Module):
    """fc2(act(fc1 x)), with dropout behind both steps.

    Args:
        dim: channels.
        hidden: neurons.
        act: name of the activation.
        drop: dropout.
        layout: "tokens" has linear layers, "map" has 1 x 1 convolutions.
        inside: a part between fc1 and the activation, on ``hidden`` channels.
        linear: makes a map from (in, out, bias); that of the layout unless it is said.
        gate: a part that the result passes through, in the layout.

    Shapes:
        (B, N, C) or (B, C, H, W) by ``layout`` -> the same.

    Example:
        >>> import torch
        >>> Mlp(8, 32)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: str = "gelu",
        drop: float = 0.0,
        layout: Layout = "tokens",
        inside: nn.Module | None = None,
        linear: Callable[[int, int, bool], nn.Module] | None = None,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {hidden}")
        self.layout = layout
        linear = LINEAR[layout] if linear is None else linear
        self.fc1 = linear(dim, hidden, True)
        self.inside = inside
        self.act = make_activation(act)
        self.fc2 = linear(hidden, dim, True)
        self.drop = nn.Dropout(drop)
        self.gate = gate

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        x = self.fc1(x)
        if self.inside is not None:
            if spatial_shape is None:
                raise ValueError("an MLP with a part inside needs the grid of its tokens")
            x = call_in_layout(self.inside, x, spatial_shape, self.layout)
        x = self.drop(self.act(x))
        out: Tensor = self.drop(self.fc2(x))
        return out if self.gate is None else self.gate(out)
