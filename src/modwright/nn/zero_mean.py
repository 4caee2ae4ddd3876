"""Maps and tables whose results have zero mean over the last axis, however they are trained.

Each keeps the parameters of the module that it stands for and recentres them when it runs. So its
function of the parameters, and every gradient, is that of the plain module followed by a
subtraction of the mean. Weights that were recentered once would drift away under an optimizer such
as Adam, whose step is not linear in the gradient. arXiv 2305.14858.

Axes: d is the width of the result.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ZeroMean", "ZeroMeanEmbedding", "ZeroMeanLinear", "recentered", "zero_mean_"]


def recentered(x: Tensor, axis: int = -1) -> Tensor:
    """x minus its mean over one axis.

    Example:
        >>> recentered(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-2., -1.,  3.])
    """
    return x - x.mean(axis, keepdim=True)


class ZeroMean:
    """Mixed in before a module class: recentres what the module returns over its last axis.

    A module that returns a tuple has its first entry recentered.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)  # type: ignore[misc]
        if isinstance(result, tuple):
            return recentered(result[0]), *result[1:]
        return recentered(result)


class ZeroMeanLinear(ZeroMean, nn.Linear):
    """A linear layer with output of zero mean: y = (W - mean_rows(W)) x + (b - mean(b)).

    Recentring the weights costs d * in_features operations, whatever the batch.

    Shapes:
        x (..., in_features) -> (..., d); weight (d, in_features); bias (d,) or None.

    Example:
        >>> y = ZeroMeanLinear(3, 5)(torch.ones(2, 3))
        >>> y.shape, bool(y.mean(-1).abs().max() < 1e-6)
        (torch.Size([2, 5]), True)
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else recentered(self.bias)
        return F.linear(x, recentered(self.weight, 0), bias)


class ZeroMeanEmbedding(ZeroMean, nn.Embedding):
    """A table whose vectors are recentered as they are looked up.

    The stored table stays as it is, so that a head may share it.

    Shapes:
        ids (...) -> (..., d); weight (entries, d).

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
    if not isinstance(module, ZeroMean):
        base: Any = type(module)
        module.__class__ = _zero_mean_class(base)
    return module


@cache
def _zero_mean_class(base: Any) -> type[nn.Module]:
    named: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: ZeroMeanLinear,
        nn.Embedding: ZeroMeanEmbedding,
    }
    if base in named:
        return named[base]

    def __reduce__(self: nn.Module) -> Any:  # noqa: N807 (the class is made on demand)
        return _blank, (base,), self.__dict__

    fields = {"__module__": __name__, "__reduce__": __reduce__}
    return cast(type[nn.Module], type(f"ZeroMean{base.__name__}", (ZeroMean, base), fields))


def _blank(base: Any) -> nn.Module:
    """An instance without state, for copying and pickling."""
    kind = _zero_mean_class(base)
    return kind.__new__(kind)
