"""Which experts serve which tokens, from scores.

Axes: T tokens, N experts, k of them for each token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SELECTIONS", "choose_experts"]

SELECTIONS = ("top", "bottom", "not_top")


@torch.no_grad()
def choose_experts(
    scores: Tensor, top_k: int, selection: str = "top", capacity: float | None = None
) -> Tensor:
    """Chooses experts for every token; no gradient flows through the choice.

    Args:
        scores: (..., N).
        top_k: k.
        selection: "top" takes the k highest scores, "bottom" the k lowest, "not_top" all experts
            but the k highest.
        capacity: an expert serves at most k int(capacity ceil(T / N)) of all T tokens; first
            choices go before second ones, then tokens with a higher best score. None: no limit.
            What a token gets then depends on the tokens beside it.

    Returns:
        (..., N), true where chosen.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
        >>> choose_experts(scores, 2).int().tolist()
        [[1, 0, 1], [0, 1, 1]]
        >>> choose_experts(scores, 2, "not_top").int().tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    best = scores.topk(top_k, dim=-1, largest=selection != "bottom").indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    if selection == "not_top":
        return ~chosen
    if capacity is None:
        return chosen
    return _served(scores.flatten(0, -2), best.flatten(0, -2), capacity).view_as(chosen)


def _served(scores: Tensor, best: Tensor, capacity: float) -> Tensor:
    """(T, N): true where a token has a place at one of its choices ``best`` (T, k)."""
    tokens, experts = scores.shape
    positions = best.shape[1] * int(capacity * -(-tokens // experts))
    queue = scores.amax(1).argsort(descending=True, stable=True)
    asked = F.one_hot(best[queue].T.flatten(), experts)  # (k T, N): all first choices, then second
    has_place = (asked.cumsum(0) <= positions) & asked.bool()
    served = torch.zeros_like(scores, dtype=torch.bool)
    served[queue] = has_place.view(-1, tokens, experts).any(0)
    return served
