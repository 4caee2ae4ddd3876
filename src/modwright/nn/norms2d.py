"""Normalizations of vision models by name, for maps (B, C, H, W) and tokens (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.layouts import Layout
from modwright.nn.norms import RMSNorm

__all__ = ["NORMS", "ChannelNorm", "make_norm"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map at each position; its weights are LayerNorm's.

    Example:
        >>> import torch
        >>> ChannelNorm(8)(torch.randn(2, 8, 3, 5)).shape
        torch.Size([2, 8, 3, 5])
    """

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return last.permute(0, 3, 1, 2)


def _map_only(name: str, layout: Layout) -> None:
    if layout != "map":
        raise ValueError(f"norm {name!r} is for maps, not for tokens")


def _ln(dim: int, eps: float, layout: Layout) -> nn.Module:
    return (ChannelNorm if layout == "map" else nn.LayerNorm)(dim, eps=eps)


def _gn1(dim: int, eps: float, layout: Layout) -> nn.Module:
    _map_only("gn1", layout)
    return nn.GroupNorm(1, dim, eps=eps)


def _bn2d(dim: int, eps: float, layout: Layout) -> nn.Module:
    _map_only("bn2d", layout)
    return nn.BatchNorm2d(dim, eps=eps)


def _rms(dim: int, eps: float, layout: Layout) -> nn.Module:
    if layout != "tokens":
        raise ValueError("norm 'rms' is for tokens, not for maps")
    return RMSNorm(dim, eps)


def _none(dim: int, eps: float, layout: Layout) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[int, float, Layout], nn.Module]] = {
    "ln": _ln,
    "gn1": _gn1,
    "bn2d": _bn2d,
    "rms": _rms,
    "none": _none,
}


def make_norm(name: str, dim: int, eps: float = 1e-5, layout: Layout = "tokens") -> nn.Module:
    """A norm by its name.

    "ln" is over the channels of each position, "gn1" over channels and positions of a map with a
    gain per channel; the others are "bn2d", "rms" and "none". ``eps`` differs even inside one
    model.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; valid values: {', '.join(NORMS)}")
    return NORMS[name](dim, eps, layout)
