"""Decompositions of the matrix pairs of a block, from second moments of what they read.

Axes (torch layout, weights [out, in]): d hidden_size, I neurons, G query heads that share a key and
a value, D channels of a head, k kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = [
    "moment_roots",
    "nystrom_mlp",
    "select_query_key",
    "select_rotary_pairs",
    "value_output",
]


def nystrom_mlp(
    down: Tensor, moments: Tensor, keep: int, ridge: float = 1e-2, jitter: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Chooses neurons by ridge leverage and lets the kept ones stand in for the rest.

    Args:
        down: (d, I) weights of the down projection.
        moments: (I, I) second moments of its input, float64.
        keep: neurons to keep.
        ridge: in the leverage scores.
        jitter: on the diagonal of the kept moments; multiplied by 10 until they factorize.

    Returns:
        Kept neurons in order (k,), and the new down weights (d, k).
    """
    inverse = torch.cholesky_inverse(_cholesky(moments, 0.0, ridge))
    # Leverage is 1 - ridge * diag(inverse): the largest leverages are the smallest entries.
    index = inverse.diagonal().argsort(stable=True)[:keep].sort().values
    del inverse  # of the size of the moments, which are the largest thing in memory
    factor = _cholesky(moments[index][:, index], jitter)
    mixing = torch.cholesky_solve(moments[index], factor)  # (k, I)
    return index, down.to(moments) @ mixing.T


def _cholesky(matrix: Tensor, jitter: float, ridge: float = 0.0) -> Tensor:
    """The Cholesky factor with ``ridge`` on the diagonal, and as much more as makes one exist."""
    for _ in range(12):
        raised = matrix.clone()
        raised.diagonal().add_(ridge).add_(jitter)
        factor, failed = torch.linalg.cholesky_ex(raised)
        if not int(failed):
            return factor
        jitter = max(jitter * 10, 1e-12)
    raise InvalidInputError(
        "the activations' second moments are not positive; is the calibration text empty?"
    )


def select_query_key(q_moments: Tensor, k_moments: Tensor, keep: int) -> Tensor:
    """Channels of queries and keys that carry the scores, for heads without rotary positions.

    Args:
        q_moments: (G, D) second moments of the queries that share a key.
        k_moments: (D,) second moments of that key.
        keep: channels to keep.

    Returns:
        (keep,) channels, most important first.
    """
    scores = (q_moments * k_moments).sum(0).sqrt()
    return scores.argsort(descending=True, stable=True)[:keep]


def select_rotary_pairs(q_moments: Tensor, k_moments: Tensor, keep: int, pairs: Tensor) -> Tensor:
    """Pairs of channels to keep, for heads with rotary positions: a pair turns together.

    Args:
        q_moments: (G, D). k_moments: (D,), as in :func:`select_query_key`.
        keep: channels to keep, an even number.
        pairs: (D/2, 2) channels that belong together.

    Returns:
        (keep,) first members of the kept pairs, most important first, then their partners.
    """
    each = (q_moments * k_moments).sum(0)  # (D,)
    scores = each[pairs].sum(1).sqrt()
    best = pairs[scores.argsort(descending=True, stable=True)[: keep // 2]]
    return torch.cat((best[:, 0], best[:, 1]))


def value_output(
    value: Tensor,
    output: Tensor,
    root: Tensor,
    inverse_root: Tensor,
    keep: int,
    joint: bool = True,
) -> tuple[Tensor, Tensor, float]:
    """The best value and output maps of a lower rank, for one key/value head.

    Args:
        value: (D, d). output: (G, D, d) of the query heads that share it.
        root, inverse_root: (d, d) from :func:`moment_roots` of what the values read.
        keep: channels to keep.
        joint: one decomposition of the value and all outputs, which is optimal. False: of the value
            alone, as the paper has it for shared values.

    Returns:
        New value (keep, d), new outputs (G, keep, d), and the squared error.
    """
    groups, _, width = output.shape
    u, s, vh = torch.linalg.svd(root @ value.T, full_matrices=False)  # (d, D), (D,), (D, D)
    inner = s[:, None] * vh  # (D, D)
    if joint:
        mixed = inner @ output.transpose(0, 1).reshape(value.shape[0], -1)  # (D, G d)
        u2, s2, vh2 = torch.linalg.svd(mixed, full_matrices=False)
        new_value = (inverse_root @ u @ u2[:, :keep]).T
        new_output = (s2[:keep, None] * vh2[:keep]).view(keep, groups, width).transpose(0, 1)
        error = s2[keep:].square().sum()
    else:
        new_value = (inverse_root @ u[:, :keep]).T
        new_output = inner[:keep] @ output
        error = (inner[keep:] @ output).square().sum()
    return new_value, new_output, float(error)


def moment_roots(moments: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of second moments (d, d), ``ridge`` on eigenvalues."""
    values, vectors = torch.linalg.eigh(moments)
    root = (values.clamp(min=0) + ridge).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
