"""Which experts serve which tokens, from scores; and the structure of a part in experts.

Axes: T tokens, d hidden_size, I neurons, N experts, k of them for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.nn.channel_mixers.feed_forward import FeedForwardShape

__all__ = [
    "MODES",
    "SCORES",
    "SELECTIONS",
    "STORED",
    "ExpertShape",
    "choose_experts",
    "nearest_divisors",
]


SELECTIONS = ("top", "bottom", "not_top")


@torch.no_grad()
def choose_experts(
    scores: Tensor, top_k: int, selection: str = "top", capacity: float | None = None
) -> Tensor:
    """Scores (..., N) -> which experts each token uses; no gradient flows through the choice.

    Args:
        selection: "top" takes the k highest scores, "bottom" the k lowest, "not_top" all experts
            but the k highest.
        capacity: an expert serves at most k int(capacity ceil(T / N)) of all T tokens; first
            choices go before second ones, then tokens with a higher best score. None: no limit.
            What a token gets then depends on the tokens beside it.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
        >>> choose_experts(scores, 2).int().tolist()
        [[1, 0, 1], [0, 1, 1]]
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


MODES = ("mask", "dispatch")
STORED = "avg_key"
"""The score whose vectors are kept in a buffer."""
SCORES = (STORED, "gate", "up", "up_abs", "inter", "inter_abs")


def nearest_divisors(size: int, wanted: int) -> list[int]:
    """The divisors of ``size`` next to ``wanted``: the largest up to it, the smallest above it.

    Example:
        >>> nearest_divisors(96, 64)
        [48, 96]
    """
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    below, above = ([n for n in divisors if (n > wanted) is more] for more in (False, True))
    return [*below[-1:], *above[:1]]


@dataclass(frozen=True)
class ExpertShape(FeedForwardShape):
    """Everything that fixes a :class:`modwright.nn.ExpertFeedForward`; plain JSON values.

    Attributes:
        num_experts: N groups of I / N neurons.
        top_k: k experts that a token uses.
        score: the mean over an expert's neurons by which it is chosen. "avg_key": x . G, with G
            the expert's mean key, kept in a buffer (keys are the rows of the gate map, or of the up
            map where there is no gate). "gate", "up": of the pre-activations; "up_abs": of their
            sizes; "inter", "inter_abs": of what the down map reads, and of its size. Biases are
            left out of the first four.
        selection, capacity: see :func:`choose_experts`; the capacity counts in training.
        mode: "mask" computes all neurons and silences those not chosen; "dispatch" computes only
            the chosen ones. Both give the same result.
        normalize_keys: mean keys have length one (avg_key only).
        weigh_keys: a key's weight in the mean is the length of its neuron's down column (avg_key
            only).
    """

    num_experts: int = 1
    top_k: int = 1
    score: str = STORED
    selection: str = "top"
    mode: str = "mask"
    normalize_keys: bool = False
    weigh_keys: bool = False
    capacity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size, n = self.intermediate_size, self.num_experts
        if n < 1 or size % n:
            near = " or ".join(map(str, nearest_divisors(size, max(n, 1))))
            raise ValueError(
                f"{size} neurons do not split into {n} experts of one size; nearest: {near}"
            )
        scores = [name for name in SCORES if self.gated or name != "gate"]
        valid = (("score", scores), ("selection", SELECTIONS), ("mode", MODES))
        for name, words in valid:
            if getattr(self, name) not in words:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(words)}")
        most = n - 1 if self.selection == "not_top" else n
        if not 1 <= self.top_k <= most:
            raise ValueError(f"top_k {self.top_k} must lie between 1 and {most}")
        if (self.normalize_keys or self.weigh_keys) and self.score != STORED:
            raise ValueError(f"normalize_keys and weigh_keys go with score {STORED!r} only")
        if self.capacity is not None and not self.capacity >= 1:
            raise ValueError(f"capacity {self.capacity} must be at least 1")

    @property
    def expert_size(self) -> int:
        """Neurons of one expert."""
        return self.intermediate_size // self.num_experts

    def describe(self) -> str:
        """In a few words, for tables.

        Example:
            >>> ExpertShape(8, 32, "relu", num_experts=4, top_k=2, score="up").describe()
            '4 experts of 8, top 2 by up'
        """
        chosen = f"{self.selection.replace('_', ' ')} {self.top_k} by {self.score}"
        how = ", dispatched" if self.mode == "dispatch" else ""
        return f"{self.num_experts} experts of {self.expert_size}, {chosen}{how}"

    @property
    def experts_per_token(self) -> int:
        """How many experts a token uses."""
        return self.num_experts - self.top_k if self.selection == "not_top" else self.top_k
