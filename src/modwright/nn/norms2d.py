"""Normalizations of vision models by name, for maps (B, C, H, W) and tokens (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


# What makes a norm, by its name and by the layout that it is for.
NORMS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "ln": {"map": ChannelNorm, "tokens": nn.LayerNorm},
    "gn1": {"map": partial(nn.GroupNorm, 1)},
    "bn2d": {"map": nn.BatchNorm2d},
    "rms": {"tokens": RMSNorm},
    "none": {"map": nn.Identity, "tokens": nn.Identity},
}


def make_norm(name: str, dim: int, eps: float = 1e-5, layout: Layout = "tokens") -> nn.Module:
    """A norm by its name.

    "ln" is over the channels of each position, "gn1" over channels and positions of a map with a
    gain per channel; the others are "bn2d", "rms" and "none". ``eps`` differs even inside one
    model.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; valid values: {', '.join(NORMS)}")
    if layout not in NORMS[name]:
        (known,) = NORMS[name]
        raise ValueError(f"norm {name!r} is for {known}, not for {layout}")
    return NORMS[name][layout](dim, eps=eps)
