"""Algebra of a residual stream whose mean is taken away, on the parameters of what touches it.

Axes: d is the width of the stream. Every function takes the axis of a tensor that runs along it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modwright.nn.zero_mean import recentered

__all__ = ["folded", "mean_share", "recentered", "relative_to", "rounded", "without"]


def without(tensor: Tensor, axis: int, index: int) -> Tensor:
    """A writer's parameter without one coordinate of the stream: d -> d - 1.

    Example:
        >>> without(torch.tensor([[1.0, 2.0, 3.0]]), axis=1, index=-1)
        tensor([[1., 2.]])
    """
    width = tensor.shape[axis]
    kept = [i for i in range(width) if i != index % width]
    return tensor.index_select(axis, torch.tensor(kept, device=tensor.device))


def rounded(tensor: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Rounds so that sums along an axis stay: what one entry lost, the next one gets.

    Rounded one by one, neighbors of one size that were all moved by the same mean err to the same
    side, and the coordinate that is minus the sum of the others gets all their errors.

    Example:
        >>> x = torch.full((8,), 1 / 3, dtype=torch.float64)
        >>> off = x.sum() - x.to(torch.bfloat16).double().sum()
        >>> fed_on = x.sum() - rounded(x, 0, torch.bfloat16).double().sum()
        >>> f"{abs(float(off)):.4f} {abs(float(fed_on)):.4f}"
        '0.0052 0.0007'
    """
    if torch.finfo(dtype).bits >= 32:
        return tensor.to(dtype)
    rows = tensor.movedim(axis, 0)
    out, rest = torch.empty_like(rows, dtype=dtype), torch.zeros_like(rows[0])
    for index, row in enumerate(rows):
        out[index] = wanted = row + rest
        rest = wanted - out[index].to(tensor.dtype)
    return out.movedim(0, axis)


def relative_to(tensor: Tensor, axis: int, index: int) -> Tensor:
    """A reader's parameter for a zero-mean stream that is stored without one coordinate.

    The coordinate left out is minus the sum of the others, so its column is taken off theirs.

    Example:
        >>> relative_to(torch.tensor([[1.0, 2.0, 3.0]]), axis=1, index=-1)
        tensor([[-2., -1.]])
    """
    at = index % tensor.shape[axis]
    return without(tensor, axis, index) - tensor.narrow(axis, at, 1)


def folded(
    stored: Mapping[str, Tensor], reads: str, scale: Tensor | None, bias: Tensor | None
) -> dict[str, Tensor]:
    """A reader that does the affine step of the norm before it: W diag(scale), b + W bias.

    Args:
        stored: what the reader stores: weight (out, d), or the factors weight (out, r) and reduce
            (r, d); perhaps bias (out,). One without a bias gets one where the norm's is not zero.
        reads: the name in ``stored`` that has d columns.
        scale, bias: (d,) of the norm; None where it has none.

    Example:
        >>> w = torch.tensor([[1.0, 2.0]])
        >>> folded({"weight": w}, "weight", torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
        {'weight': tensor([[3., 2.]]), 'bias': tensor([3.])}
    """
    new = dict(stored)
    if bias is not None and bool(bias.any()):
        moved = stored[reads] @ bias
        if reads != "weight":
            moved = stored["weight"] @ moved
        new["bias"] = stored["bias"] + moved if "bias" in stored else moved
    if scale is not None:
        new[reads] = stored[reads] * scale
    return new


def mean_share(tensor: Tensor, axis: int) -> float:
    """How far a parameter is from zero mean along one axis: 0 is zero mean, 1 that of noise.

    The root mean square of the means, over that of the entries, times the root of d.

    Example:
        >>> mean_share(torch.tensor([[1.0, -1.0], [2.0, -2.0]]), axis=1)
        0.0
        >>> round(mean_share(torch.randn(4000, 64), axis=1), 1)
        1.0
    """
    wide = tensor.double()
    size = float(wide.square().mean().sqrt())
    if not size:
        return 0.0
    means = float(wide.mean(axis).square().mean().sqrt())
    return means / size * tensor.shape[axis] ** 0.5
