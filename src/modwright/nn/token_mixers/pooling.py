"""Token mixers without a product of tokens: pooling, nothing, one learned or random matrix.

All take and give maps (B, C, H, W). arXiv 2111.11418.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modwright.nn.component import component
from modwright.nn.layouts import SpatialShape

__all__ = [
    "DepthwiseConvMixer",
    "IdentityMixer",
    "MultiHeadConvAttention",
    "Pooling",
    "RandomMixing",
    "SpatialFC",
]


@component("pool", kind="token_mixer", reads="map")
class Pooling(nn.Module):
    """The mean of the neighborhood minus the position; at the border there are fewer neighbors.

    Where no gradient is wanted, means on the CPU are taken along one axis and then along the other:
    two additions per axis and step instead of all positions of the neighborhood.

    Example:
        >>> Pooling(3)(torch.ones(1, 2, 4, 4)).abs().max()
        tensor(0.)
    """

    layout = "map"

    def __init__(self, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size % 2 == 0 or pool_size < 1:
            raise ValueError(f"pool_size must be odd, not {pool_size}")
        self.pool_size = pool_size
        self.pool = nn.AvgPool2d(pool_size, 1, pool_size // 2, count_include_pad=False)

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        """None: it adds."""
        return 0

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        if _in_one_step(x):
            return self.pool(x) - x
        return _means(x, self.pool_size).sub_(x)


@component("identity", kind="token_mixer", reads="either", causal=True)
class IdentityMixer(nn.Module):
    """Mixes nothing: the branch is the normed stream itself."""

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        return 0

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return x


@component("spatial_fc", kind="token_mixer", reads="map", any_length=False)
class SpatialFC(nn.Module):
    """One learned matrix over the positions, shared by all channels; it fixes the grid."""

    layout = "map"

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.fc = nn.Linear(num_tokens, num_tokens, bias=False)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        _check_positions(x, self.num_tokens)
        return self.fc(x.flatten(2)).view_as(x)


@component("random", kind="token_mixer", reads="map", any_length=False)
class RandomMixing(nn.Module):
    """One frozen random matrix over the positions, a softmax along each of its rows."""

    layout = "map"

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.matrix = nn.Parameter(torch.empty(num_tokens, num_tokens), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self.matrix.is_meta:
            with torch.no_grad():
                self.matrix.copy_(torch.rand_like(self.matrix).softmax(-1))

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        _check_positions(x, self.num_tokens)
        return (x.flatten(2) @ self.matrix.T).view_as(x)


@component("depthwise", kind="token_mixer", reads="map")
class DepthwiseConvMixer(nn.Module):
    """A convolution per channel."""

    layout = "map"

    def __init__(self, hidden_size: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        sizes = hidden_size, hidden_size, kernel_size
        self.conv = nn.Conv2d(*sizes, padding=kernel_size // 2, groups=hidden_size)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return self.conv(x)


def _in_one_step(x: Tensor) -> bool:
    """Whether torch's pooling is the better way.

    It has a gradient, a name in exports, and adds short numbers up in long ones; on other devices
    it is fast.
    """
    return (
        (torch.is_grad_enabled() and x.requires_grad)
        or x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.float64)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


def _means(x: Tensor, size: int) -> Tensor:
    """Means over the positions of a square that lie on the map, by shifted sums along each axis."""
    x = _sums(_sums(x, size // 2, -2), size // 2, -1)
    down, along = (_positions_within(side, size // 2, x) for side in x.shape[-2:])
    return x.div_(down[:, None] * along)


def _sums(x: Tensor, reach: int, axis: int) -> Tensor:
    """Of the positions up to ``reach`` away along an axis."""
    sums, side = x.clone(), x.shape[axis]
    for step in range(1, min(reach, side - 1) + 1):
        sums.narrow(axis, step, side - step).add_(x.narrow(axis, 0, side - step))
        sums.narrow(axis, 0, side - step).add_(x.narrow(axis, step, side - step))
    return sums


def _positions_within(side: int, reach: int, like: Tensor) -> Tensor:
    """How many positions up to ``reach`` away a side of a map has, for each of its positions."""
    positions = torch.arange(side, dtype=like.dtype)
    return positions.add(reach).clamp(max=side - 1) - positions.sub(reach).clamp(min=0) + 1


def _check_positions(x: Tensor, num_tokens: int) -> None:
    height, width = x.shape[2:]
    if height * width != num_tokens:
        raise ValueError(
            f"built for {num_tokens} positions, not for a grid of {height} x {width}: "
            "this mixer takes one image size"
        )


class MultiHeadConvAttention(nn.Module):
    """proj(act(conv x)), the last map without a bias (arXiv 2207.05501).

    ``conv`` mixes positions and keeps the shape; grouped, it mixes few channels.

    Example:
        >>> mixer = MultiHeadConvAttention(8, nn.Conv2d(8, 8, 3, padding=1, groups=2))
        >>> mixer(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    layout = "map"

    def __init__(self, dim: int, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, nn.ReLU()
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return self.proj(self.act(self.conv(x)))
