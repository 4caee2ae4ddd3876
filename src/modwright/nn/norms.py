"""Normalizations over the last axis, of width d.

A stream whose coordinates sum to zero needs only d - 1 of them: the one left out is minus the sum
of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.component import component

__all__ = ["CRMSNorm", "RMSNorm", "RestoringCRMSNorm", "naive_rms_norm", "restore_coordinate"]


def _wide(x: Tensor) -> Tensor:
    """At least float32: squares and means of narrower numbers lose too much."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def naive_rms_norm(
    x: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    cast_first: bool = True,
) -> Tensor:
    """The truth behind :class:`RMSNorm`, every step a tensor of its own: (..., d) -> (..., d)."""
    wide = _wide(x)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if cast_first:
        wide = wide.to(x.dtype)
    if weight is not None:
        wide = weight * wide
    if bias is not None:
        wide = wide + bias
    return wide if cast_first else wide.to(x.dtype)


@component("rms_norm", kind="norm")
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias; the mean is taken in float32 or wider.

    ``cast_first``: the result is cast back before the weight multiplies, as in Llama's norm, and
    not after it, as in torch's LayerNorm. It matters in half precision only.

    Example:
        >>> RMSNorm(4)(torch.tensor([[2.0, 2.0, 2.0, 2.0]])).round(decimals=3)
        tensor([[1., 1., 1., 1.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        weight: bool = True,
        bias: bool = False,
        cast_first: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, not {hidden_size}")
        self.hidden_size, self.eps, self.cast_first = hidden_size, eps, cast_first
        self.weight = nn.Parameter(torch.ones(hidden_size)) if weight else None
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.cast_first or bias is not None:
            return naive_rms_norm(x, self.eps, weight, bias, self.cast_first)
        return F.rms_norm(x, (self.hidden_size,), weight, self.eps)

    def extra_repr(self) -> str:
        held = [name for name in ("weight", "bias") if getattr(self, name) is not None]
        return ", ".join([f"{self.hidden_size}", f"eps={self.eps}", *held])


@component("crms_norm", kind="norm")
class CRMSNorm(nn.Module):
    """The RMS norm of a zero-mean vector stored without one coordinate (arXiv 2305.14858).

    z / sqrt((sum(z^2) + sum(z)^2) / d + eps) for z of width ``hidden_size`` = d - 1: the coordinate
    left out is -sum(z), whichever it was.

    Example:
        >>> CRMSNorm(2)(torch.tensor([[3.0, -1.0]])).round(decimals=3)
        tensor([[ 1.3890, -0.4630]])
        >>> RMSNorm(3, weight=False)(torch.tensor([[3.0, -1.0, -2.0]])).round(decimals=3)
        tensor([[ 1.3890, -0.4630, -0.9260]])
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, not {hidden_size}")
        self.hidden_size, self.eps = hidden_size, eps

    def forward(self, z: Tensor) -> Tensor:
        wide = _wide(z)
        # The norm is taken without a tensor of squares.
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        energy = length.square() + wide.sum(-1, keepdim=True).square()
        return (wide * torch.rsqrt(energy / (self.hidden_size + 1) + self.eps)).to(z.dtype)

    def extra_repr(self) -> str:
        return f"{self.hidden_size} of {self.hidden_size + 1}, eps={self.eps}"


class RestoringCRMSNorm(RMSNorm):
    """Puts back the coordinate that a zero-mean stream is stored without, then takes the RMS norm.

    It stands before readers that want all d coordinates: (..., d - 1) -> (..., d). ``index`` is the
    place of the coordinate; other arguments are those of :class:`RMSNorm`.

    Example:
        >>> RestoringCRMSNorm(3, index=0)(torch.tensor([[-1.0, -2.0]])).round(decimals=3)
        tensor([[ 1.3890, -0.4630, -0.9260]], grad_fn=<RoundBackward1>)
    """

    def __init__(self, hidden_size: int, *more: Any, index: int = -1, **named: Any) -> None:
        super().__init__(hidden_size, *more, **named)
        self.index = index

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(restore_coordinate(z, self.index))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, index={self.index}"


@component("restoring_crms_norm", kind="norm")
def restoring_crms_norm(
    hidden_size: int, eps: float, index: int, weight: bool = True, bias: bool = False
) -> RestoringCRMSNorm:
    """One that casts after its weight, as torch's LayerNorm does."""
    return RestoringCRMSNorm(hidden_size, eps, weight, bias, cast_first=False, index=index)


def restore_coordinate(z: Tensor, index: int = -1) -> Tensor:
    """(..., d - 1) -> (..., d): puts minus the sum of the others at position ``index``.

    Example:
        >>> restore_coordinate(torch.tensor([1.0, 2.0]), index=0)
        tensor([-3.,  1.,  2.])
    """
    width = z.shape[-1] + 1
    if not -width <= index < width:
        raise ValueError(f"index {index} must lie between {-width} and {width - 1}")
    left_out = -_wide(z).sum(-1, keepdim=True).to(z.dtype)
    at = index % width
    return torch.cat((z[..., :at], left_out, z[..., at:]), dim=-1)
