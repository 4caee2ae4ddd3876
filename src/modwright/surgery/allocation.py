"""How much of each layer goes, given how much it matters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modwright.core.errors import InvalidInputError

__all__ = ["allocate_sparsity", "spread"]


def allocate_sparsity(
    scores: Sequence[float], target: float, epsilon: float = 0.1, max_sparsity: float = 0.8
) -> list[float]:
    """Spreads an average sparsity over layers: much where a layer matters little.

    Maximizes the kept importance plus ``epsilon`` times the entropy of the spread, under a cap:
    layers over it are set to it, and their excess goes to the others in proportion to their weight.

    Args:
        scores: importance of each layer (1 - mean cosine of its input and output).
        target: average sparsity.
        epsilon: large values spread evenly.
        max_sparsity: cap of one layer.

    Raises:
        InvalidInputError: a target that the cap does not allow.

    Example:
        >>> [round(s, 3) for s in allocate_sparsity([0.5, 0.1, 0.1], 0.2)]
        [0.005, 0.297, 0.297]
    """
    if not 0 <= target < 1:
        raise InvalidInputError(f"sparsity {target} must lie in [0, 1)")
    if not 0 < max_sparsity < 1:
        raise InvalidInputError(f"max_sparsity {max_sparsity} must lie between 0 and 1")
    if target > max_sparsity:
        raise InvalidInputError(
            f"sparsity {target} cannot be reached with at most {max_sparsity} a layer"
        )
    if epsilon <= 0:
        raise InvalidInputError(f"epsilon {epsilon} must be positive")
    weights = (-torch.tensor(scores, dtype=torch.float64) / epsilon).softmax(0)
    total = len(scores) * target
    capped = torch.zeros(len(scores), dtype=torch.bool)
    sparsity = torch.zeros(len(scores), dtype=torch.float64)
    # Every pass caps at least one more layer, so this ends.
    for _ in range(len(scores) + 1):
        free = ~capped
        left = total - max_sparsity * int(capped.sum())
        sparsity[capped] = max_sparsity
        share = weights[free].sum()
        if not bool(free.any()) or left <= 0:
            sparsity[free] = 0.0
            break
        even = torch.full_like(weights[free], 1 / int(free.sum()))
        sparsity[free] = left * (weights[free] / share if float(share) > 0 else even)
        over = sparsity > max_sparsity
        if not bool((over & free).any()):
            break
        capped |= over
    return [float(s) for s in sparsity]


def spread(sizes: Sequence[int], budget: float, cap: float) -> float:
    """What goes when the first sizes take as much of the budget as the cap allows."""
    gone = 0.0
    for size in sizes:
        share = min(cap, budget)
        gone += share * size
        budget -= share
    return gone
