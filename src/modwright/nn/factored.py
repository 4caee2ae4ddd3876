"""Linear layers: of one matrix, of each position of a map, of two thin factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.component import component

__all__ = ["FactorPair", "linear", "pointwise"]


def _has_sizes(stock: Any, in_features: int, out_features: int, bias: bool = True) -> bool:
    """The stock part is one linear layer of these widths."""
    layer = stock.linear
    held = {} if layer is None else layer.parameters()
    told = {name: tuple(tensor.shape) for name, tensor in held.items()}
    sizes = {"weight": (out_features, in_features)}
    return told == (sizes | {"bias": (out_features,)} if bias else sizes)


@component("linear", kind="projection", is_stock=_has_sizes)
def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """torch's own, by the name that configs have for it."""
    return nn.Linear(in_features, out_features, bias)


@component("pointwise", kind="projection", reads="map")
def pointwise(in_features: int, out_features: int, bias: bool = True) -> nn.Conv2d:
    """A linear layer over the channels of each position of a map."""
    return nn.Conv2d(in_features, out_features, 1, bias=bias)


@component("factors", kind="projection")
class FactorPair(nn.Module):
    """A linear layer of rank ``rank``, in two thin factors: ``y = weight (reduce x) + bias``.

    x (..., in) -> (..., out); weight (out, rank), reduce (rank, in). The outer factor is called
    ``weight`` on purpose: a stock class that meets the checkpoint finds a shape it does not expect
    there and fails, instead of starting from random numbers.

    Example:
        >>> FactorPair(8, 6, rank=2)(torch.zeros(3, 8)).shape
        torch.Size([3, 6])
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        if not 0 < rank < in_features:
            raise ValueError(f"rank {rank} must lie between 1 and {in_features - 1}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(out_features, rank))
        self.reduce = nn.Parameter(torch.empty(rank, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.rank**-0.5)
        nn.init.normal_(self.reduce, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.reduce), self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )
