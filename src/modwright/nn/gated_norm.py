"""An RMS norm behind a gate, with statistics of groups of channels (arXiv 2405.21060)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.precision import at_least_float32, full_precision

__all__ = ["GatedRMSNorm"]


class GatedRMSNorm(nn.Module):
    """x * SiLU(gate), each group of channels divided by its root mean square, times a weight.

    (..., hidden_size) -> the same, in the type of x; computed in float32 or more.

    Args:
        groups: how many groups of equal width; a group has its own statistics.
        eps: added to the mean of squares.

    Raises:
        ValueError: groups do not fill the width.

    Example:
        >>> norm = GatedRMSNorm(4, groups=2, eps=0.0)
        >>> norm(torch.tensor([3.0, 3.0, -5.0, 5.0]), torch.ones(4)).round(decimals=4).tolist()
        [1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, hidden_size: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or hidden_size % groups:
            raise ValueError(f"{groups} groups do not fill {hidden_size} channels")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = at_least_float32(x, gate, self.weight)
        with full_precision(x):
            gated = (x.to(wide) * F.silu(gate.to(wide))).unflatten(-1, (self.groups, -1))
            normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
            return (normed.flatten(-2) * self.weight.to(wide)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}"
