"""Modules whose results have zero mean over the last axis, however they are trained; narrower ones.

Each keeps the parameters of the module that it stands for and recentres them when it runs. So its
function of the parameters, and every gradient, is that of the plain module followed by a
subtraction of the mean. Weights that were recentered once would drift away under an optimizer such
as Adam, whose step is not linear in the gradient (arXiv 2305.14858).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.component import component
from modwright.nn.placeholders import become

__all__ = ["ZeroMean", "ZeroMeanEmbedding", "ZeroMeanLinear", "narrow_", "recentered", "zero_mean_"]


def recentered(x: Tensor, axis: int = -1) -> Tensor:
    """x minus its mean over one axis.

    Example:
        >>> recentered(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-2., -1.,  3.])
    """
    return x - x.mean(axis, keepdim=True)


class ZeroMean:
    """Mixed in before a module class: recentres its result, of a tuple the first entry."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)  # type: ignore[misc]
        if isinstance(result, tuple):
            return recentered(result[0]), *result[1:]
        return recentered(result)


@component("zero_mean_linear", kind="projection")
class ZeroMeanLinear(ZeroMean, nn.Linear):
    """A linear layer with output of zero mean: y = (W - mean_rows(W)) x + (b - mean(b)).

    Recentring the weights costs d * in_features operations, whatever the batch.

    Example:
        >>> y = ZeroMeanLinear(3, 5)(torch.ones(2, 3))
        >>> y.shape, bool(y.mean(-1).abs().max() < 1e-6)
        (torch.Size([2, 5]), True)
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else recentered(self.bias)
        return F.linear(x, recentered(self.weight, 0), bias)


class ZeroMeanEmbedding(ZeroMean, nn.Embedding):
    """A table whose vectors are recentered as they are looked up; a head may share the stored one.

    Example:
        >>> ZeroMeanEmbedding(10, 4)(torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 4])
    """


def zero_mean_(module: nn.Module) -> nn.Module:
    """Lets a module return results of zero mean, in place: its parameters and their names stay.

    Example:
        >>> zero_mean_(torch.nn.Linear(3, 5, bias=False))
        ZeroMeanLinear(in_features=3, out_features=5, bias=False)
    """
    if isinstance(module, ZeroMean):
        return module
    named: dict[Any, Any] = {nn.Linear: ZeroMeanLinear, nn.Embedding: ZeroMeanEmbedding}
    if type(module) not in named:
        return become(module, ZeroMean, "ZeroMean")
    module.__class__ = named[type(module)]
    return module


_NAMES = ("out_features", "out_channels", "embedding_dim", "nf")
"""How modules call the width of their result."""


def narrow_(module: nn.Module, axes: Mapping[str, int], size: int) -> nn.Module:
    """Makes some parameters of a module narrower, in place; their values are new and undefined.

    The module's forward takes its widths from its parameters. ``axes``: name of a parameter -> the
    axis that gets the new size; all are equally wide before.

    Example:
        >>> narrow_(torch.nn.Embedding(10, 4), {"weight": -1}, 3)
        Embedding(10, 3)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    sizes = set()
    for name, axis in axes.items():
        old = dict(module.named_parameters(recurse=False)).get(name)
        if old is None:
            raise ValueError(f"{type(module).__name__} has no parameter {name!r}")
        if not -old.ndim <= axis < old.ndim:
            raise ValueError(f"parameter {name!r} {tuple(old.shape)} has no axis {axis}")
        sizes.add(old.shape[axis])
        shape = list(old.shape)
        shape[axis] = size
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    if len(sizes) > 1:
        raise ValueError(f"the axes {dict(axes)} are {sorted(sizes)} wide, not of one width")
    for name in _NAMES:
        if getattr(module, name, None) in sizes:
            setattr(module, name, size)
    return module
