"""Channel mixers of vision models: MLPs, with a convolution inside or ghost features, and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import Layout, SpatialShape, call_in_layout
from modwright.nn.reparameterize import ScaleShift, fuse_preceding_affine

__all__ = [
    "LINEAR",
    "ChannelScale",
    "GatedDepthwise",
    "GhostLinear",
    "GhostMlp",
    "Mlp",
    "ResidualDepthwiseConv",
    "SqueezeExcite",
]


def _conv1x1(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


# A linear layer of the channels in each layout; the weights are the same numbers.
LINEAR: dict[str, Callable[..., nn.Module]] = {"tokens": nn.Linear, "map": _conv1x1}


class ResidualDepthwiseConv(nn.Module):
    """u + conv(u), the convolution per channel, on maps (arXiv 2307.08579)."""

    layout = "map"

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return x + self.conv(x)


class Mlp(nn.Module):
    """fc2(act(fc1 x)) of tokens (B, N, C) or maps (B, C, H, W).

    Args:
        layout: "tokens" has linear layers, "map" has 1 x 1 convolutions.
        inside: a part between fc1 and the activation, on ``hidden`` channels.
        linear: makes a map from (in, out, bias); that of the layout unless it is said.
        gate: a part that the result passes through, in the layout.

    Example:
        >>> Mlp(8, 32)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: str = "gelu",
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
        self.fc1: Any = linear(dim, hidden, True)
        self.inside, self.act = inside, make_activation(act, layout=layout)
        self.fc2 = linear(hidden, dim, True)
        self.gate = gate

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        x = self.fc1(x)
        if self.inside is not None:
            if spatial_shape is None:
                raise ValueError("an MLP with a part inside needs the grid of its tokens")
            x = call_in_layout(self.inside, x, spatial_shape, self.layout)
        x = self.fc2(self.act(x))
        return x if self.gate is None else self.gate(x)

    def fuse_affine_(self, affine: ScaleShift) -> None:
        """Folds an affine map of the input in."""
        self.fc1 = fuse_preceding_affine(affine, self.fc1)


class GatedDepthwise(nn.Module):
    """fc2(act(u) g), u and g the halves of a depthwise 3 x 3 convolution of fc1 x.

    (B, C, H, W) -> the same; no biases (arXiv 2111.09881).

    Example:
        >>> GatedDepthwise(8, 21)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {hidden}")
        both = 2 * hidden
        self.fc1 = nn.Conv2d(dim, both, 1, bias=False)
        self.conv = nn.Conv2d(both, both, 3, padding=1, groups=both, bias=False)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        value, gate = self.conv(self.fc1(x)).chunk(2, dim=1)
        return self.fc2(self.act(value) * gate)


class ChannelScale(nn.Module):
    """A learned factor per channel, which starts as a convolution with one hook point would."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GhostLinear(nn.Module):
    """A linear layer to half of the channels; the other half are those, scaled (arXiv 1911.11907).

    (..., in) -> (..., out).

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
    """Three neurons per channel, of which two are scaled copies of the first (arXiv 2101.11986).

    u = act(fc1 x); fc2 of u, act(a u) and act(b u) side by side: (B, N, C) -> the same.

    Example:
        >>> GhostMlp(8)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.cheap1, self.cheap2 = ChannelScale(dim), ChannelScale(dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3 * dim, dim)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        kept = self.act(self.fc1(x))
        ghosts = self.act(self.cheap1(kept)), self.act(self.cheap2(kept))
        return self.fc2(torch.cat((kept, *ghosts), dim=-1))


class SqueezeExcite(nn.Module):
    """x times gate(W2 act(W1 mean(x))), one factor per channel and sample (arXiv 1709.01507).

    Tokens (B, N, C) or maps (B, C, H, W); the mean is over all of them, prefix tokens included.

    Args:
        reduction: channels of x per channel between the two maps.
        bias: of both maps.
        norm: a norm of the means (B, C) before the first map.
        residual: x is added to the result, so a factor of 0 changes nothing.

    Example:
        >>> SqueezeExcite(32)(torch.zeros(1, 5, 32)).shape
        torch.Size([1, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        *,
        act: str = "relu",
        gate: str = "sigmoid",
        bias: bool = False,
        layout: Layout = "tokens",
        norm: nn.Module | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ValueError(f"a reduction by {reduction} leaves nothing of {dim} channels")
        self.layout, self.residual, self.norm = layout, residual, norm
        self.fc1 = nn.Linear(dim, dim // reduction, bias=bias)
        self.act = make_activation(act)
        self.fc2 = nn.Linear(dim // reduction, dim, bias=bias)
        self.gate = make_activation(gate)

    def weights(self, x: Tensor) -> Tensor:
        """The factors (B, C)."""
        mean = x.mean((2, 3)) if self.layout == "map" else x.mean(1)
        mean = mean if self.norm is None else self.norm(mean)
        return self.gate(self.fc2(self.act(self.fc1(mean))))

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        weights = self.weights(x) + 1 if self.residual else self.weights(x)
        return x * (weights[:, :, None, None] if self.layout == "map" else weights[:, None])
