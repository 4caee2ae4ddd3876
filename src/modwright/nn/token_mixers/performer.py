"""Attention with positive random features: linear in the number of tokens (arXiv 2009.14794).

exp(q k') is the mean over random vectors w of f(q) f(k), with f(z) = exp(z w' - |z|^2 / 2): the
products of keys and values can be summed before any query asks for them. Neither queries nor keys
are scaled (arXiv 2101.11986).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modwright.nn.layouts import SpatialShape
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["PerformerAttention", "naive_performer", "performer"]


def naive_performer(q: Tensor, k: Tensor, v: Tensor, features: Tensor, eps: float) -> Tensor:
    """The L x L matrix of products of features, its rows divided by their sums: (..., L, d) each.

    Overflows for large queries and keys, and gives nothing but zeros or NaN in half precision.
    """

    def lifted(z: Tensor) -> Tensor:
        exponent = z @ features.T - z.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / len(features) ** 0.5

    kernel = lifted(q) @ lifted(k).transpose(-2, -1)
    return kernel @ v / (kernel.sum(-1, keepdim=True) + eps)


def performer(q: Tensor, k: Tensor, v: Tensor, features: Tensor, eps: float) -> Tensor:
    """The same numbers in L m d steps, through sums of logarithms that cannot overflow.

    q, k, v (..., L, d), features (m, d). Per feature, a softmax over the keys takes a mean of the
    values; per query, a softmax over the features takes a mean of those. What ``eps`` does to a
    small divisor is one factor at the end; 0 leaves a mean of the values however small the divisor
    is.
    """
    of_keys = k @ features.T - k.square().sum(-1, keepdim=True) / 2
    sums = of_keys.logsumexp(-2, keepdim=True)
    means = (of_keys - sums).exp().transpose(-2, -1) @ v
    of_queries = q @ features.T + sums
    mixed = of_queries.softmax(-1) @ means
    if eps == 0:
        return mixed
    divisor = of_queries.logsumexp(-1, keepdim=True) - q.square().sum(-1, keepdim=True) / 2
    # divisor / (divisor + eps), of its logarithm
    return mixed * torch.sigmoid(divisor - math.log(len(features) * eps))


class PerformerAttention(SelfAttention):
    """Attention of all tokens to all tokens at a cost that grows as their number does.

    (B, N, C) -> (B, N, out_dim). The random vectors are orthogonal, are not trained, and belong to
    the weights; the error falls with the root of their number. Sums are in float32 whatever the
    precision of the input. ``eps`` is added to the divisor, which is small where no key is like the
    query.

    Example:
        >>> PerformerAttention(8, 2, num_features=4)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_features: int,
        *,
        out_dim: int | None = None,
        proj_drop: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(dim, num_heads, out_dim=out_dim, scale=1.0)
        self.proj_drop = nn.Dropout(proj_drop)
        if num_features < 1:
            raise ValueError(f"at least 1 random feature is needed, not {num_features}")
        self.eps = eps
        features = torch.empty(num_features, self.width // num_heads)
        self.features = nn.Parameter(features, requires_grad=False)
        self.reset_parameters()

    @property
    def narrowing_blocker(self) -> str:
        return "random features stand for its softmax"

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.features, gain=len(self.features) ** 0.5)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spatial_shape: SpatialShape | None = None
    ) -> Tensor:
        at_least = at_least_float32(q)
        with full_precision(q):
            q, k, wide, features = (part.to(at_least) for part in (q, k, v, self.features))
            mixed = performer(q, k, wide, features, self.eps)
        return mixed.to(v.dtype).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_features={len(self.features)}"
