"""Stems of convolutions, and steps from one grid to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.activations import make_activation
from modwright.nn.norms2d import make_norm

__all__ = ["Conv", "ConvStem", "Downsample", "PatchMerging", "PixelShuffleUp", "PooledProjection"]


@dataclass(frozen=True)
class Conv:
    """One convolution of a stem, and the names of the norm and activation that follow it."""

    out: int
    kernel: int
    stride: int
    padding: int = 0
    bias: bool = True
    norm: str = "none"
    act: str = "identity"
    eps: float = 1e-5


class ConvStem(nn.Sequential):
    """Convolutions one after the other, a row each; ``conv`` takes the arguments of ``nn.Conv2d``.

    Example:
        >>> import torch
        >>> ConvStem(3, [Conv(64, 7, 4, 2)])(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64, 16, 16])
    """

    def __init__(
        self, in_channels: int, rows: Sequence[Conv], conv: Callable[..., nn.Conv2d] = nn.Conv2d
    ) -> None:
        super().__init__()
        for index, row in enumerate(rows):
            numbers = (in_channels, row.out, row.kernel, row.stride, row.padding)
            self.add_module(f"conv{index}", conv(*numbers, bias=row.bias))
            if row.norm != "none":
                self.add_module(f"norm{index}", make_norm(row.norm, row.out, row.eps, "map"))
            if row.act != "identity":
                act = make_activation(row.act, layout="map")
                if isinstance(act, nn.ReLU):
                    act.inplace = True  # nothing else reads what comes in, gradients neither
                self.add_module(f"act{index}", act)
            in_channels = row.out


class Downsample(nn.Module):
    """A 3 x 3 convolution of stride 2 between stages, with a norm behind it if one is named."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 1,
        norm: str = "none",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, 1, groups=groups)
        self.norm = None if norm == "none" else make_norm(norm, out_channels, eps, "map")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class PixelShuffleUp(nn.Sequential):
    """A 3 x 3 convolution whose channels become the pixels of a square (arXiv 1609.05158).

    (B, dim, H, W) -> (B, out_channels, scale H, scale W).

    Example:
        >>> PixelShuffleUp(8, 3, 2)(torch.zeros(1, 8, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(self, dim: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(dim, out_channels * scale**2, 3, padding=1))
        self.add_module("shuffle", nn.PixelShuffle(scale))


class PooledProjection(nn.Sequential):
    """Means of ``stride`` x ``stride`` positions, a 1 x 1 convolution, a norm (arXiv 2207.05501).

    (B, C, H, W) -> (B, C', H / stride, W / stride), sides rounded up: at the border of a map
    without whole squares, the mean is over the positions that are there.

    Example:
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


class PatchMerging(nn.Module):
    """Positions of a 2 x 2 square side by side, a norm, a linear layer (arXiv 2103.14030).

    (B, C, H, W) -> (B, C', H / 2, W / 2), sides rounded up with zeros. The square goes down its
    columns, as published weights have it.

    Example:
        >>> PatchMerging(8, 16)(torch.zeros(1, 8, 4, 5)).shape
        torch.Size([1, 16, 2, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels, eps=eps)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        square = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(square, dim=-1))).permute(0, 3, 1, 2)
