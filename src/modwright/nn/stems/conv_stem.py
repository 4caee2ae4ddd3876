"""Stems and downsampling that are convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.norms2d import make_norm

__all__ = ["Conv", "ConvStem", "Downsample"]


@dataclass(frozen=True)
class Conv:
    """One convolution of a stem: its numbers, and what follows it.

    Attributes:
        out: channels that go out.
        kernel, stride, padding: in pixels.
        bias: of the convolution.
        norm: name of a norm behind it.
        act: name of an activation behind that.
    """

    out: int
    kernel: int
    stride: int
    padding: int = 0
    bias: bool = True
    norm: str = "none"
    act: str = "identity"
    eps: float = 1e-5


class ConvStem(nn.Sequential):
    """Convolutions one after the other: one row of a table each.

    Args:
        in_channels: of the image.
        rows: the table.
        conv: makes a convolution, from the arguments of ``nn.Conv2d``.

    Example:
        >>> import torch
        >>> ConvStem(3, [Conv(64, 7, 4, 2)])(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        rows: Sequence[Conv],
        conv: Callable[..., nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        for index, row in enumerate(rows):
            numbers = (in_channels, row.out, row.kernel, row.stride, row.padding)
            self.add_module(f"conv{index}", conv(*numbers, bias=row.bias))
            if row.norm != "none":
                norm = make_norm(row.norm, row.out, row.eps, layout="map")
                self.add_module(f"norm{index}", norm)
            if row.act != "identity":
                act = make_activation(row.act)
                if isinstance(act, nn.ReLU):
                    act.inplace = True  # nothing else reads what comes in, gradients neither
                self.add_module(f"act{index}", act)
            in_channels = row.out


class Downsample(nn.Module):
    """A strided convolution between stages, with a norm behind it if one is named.

    Args:
        in_channels: of what comes in.
        out_channels: of what goes out.
        kernel_size, stride, padding: in places.
        groups: of the convolution.
        norm: name of the norm behind it.

    Shapes:
        (B, C, H, W) -> (B, C', H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 1,
        *,
        groups: int = 1,
        norm: str = "none",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups
        )
        self.norm = None if norm == "none" else make_norm(norm, out_channels, eps, layout="map")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)
