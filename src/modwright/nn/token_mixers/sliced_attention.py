"""Attention inside groups of tokens, shuffled on later passes of one block (arXiv 2111.05297)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modwright.nn.layouts import SpatialShape
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["PERMUTATIONS", "SlicedAttention", "naive_sliced_attention"]


# The order of tokens on later passes: a new one each time, one of a seed, or that of the grid.
PERMUTATIONS = ("random", "fixed", "none")


class SlicedAttention(SelfAttention):
    """Softmax attention of each token to the tokens of its own slice: (B, N, C) -> the same.

    With G slices of N tokens the two products of tokens with tokens cost N N / G instead of N N.
    On the first pass slices are runs of tokens in the order of the grid. On later ones all tokens
    are shuffled before they are sliced, and put back behind it, so that slices see others' tokens.

    Args:
        groups: slices on the first pass, on the second, and so on; the last entry counts for all
            passes behind it. With 1 the layer is plain attention and nothing is shuffled.
        permutation: a name of :data:`PERMUTATIONS`, in training.
        eval_permutation: the same in eval mode. With "random", which the authors' code has there,
            too, no two answers are equal.
        seed: of "fixed".

    Example:
        >>> part = SlicedAttention(8, 2, groups=[4, 2]).eval()
        >>> part(torch.zeros(1, 16, 8), loop=1).shape
        torch.Size([1, 16, 8])
    """

    takes_loop = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        groups: Sequence[int] = (1,),
        *,
        permutation: str = "random",
        eval_permutation: str = "fixed",
        seed: int = 0,
        **more: Any,
    ) -> None:
        for name in (permutation, eval_permutation):
            if name not in PERMUTATIONS:
                raise ValueError(
                    f"unknown permutation {name!r}; valid values: {', '.join(PERMUTATIONS)}"
                )
        if not groups or min(groups) < 1:
            raise ValueError(f"there is at least 1 group on each pass, not {list(groups)}")
        super().__init__(dim, num_heads, **more)
        self.groups, self.seed = tuple(groups), seed
        self.permutation, self.eval_permutation = permutation, eval_permutation
        # Lists, not tensors: they survive a build on the meta device and a trace.
        self._fixed: dict[int, list[int]] = {}

    @property
    def narrowing_blocker(self) -> str:
        return "it works in slices of the tokens"

    def fixed_permutation(self, tokens: int) -> list[int]:
        """The order that "fixed" has for so many tokens."""
        if tokens not in self._fixed:
            order = list(range(tokens))
            random.Random(self.seed).shuffle(order)
            self._fixed[tokens] = order
        return self._fixed[tokens]

    def fix_permutation(self, order: Tensor | Sequence[int]) -> None:
        """Puts another order in the place of the seed's. It is not saved with the weights."""
        listed = [int(index) for index in order]
        _check_permutation(listed, len(listed))
        self._fixed[len(listed)] = listed

    def forward(
        self,
        x: Tensor,
        spatial_shape: SpatialShape | None = None,
        loop: int = 0,
        permutation: Tensor | None = None,
    ) -> Tensor:
        """Pass ``loop`` of its block, from 0; ``permutation`` orders the tokens for this call."""
        batch, tokens = x.shape[:2]
        groups = self.groups[min(loop, len(self.groups) - 1)]
        if tokens % groups:
            raise ValueError(f"{groups} groups do not divide {tokens} tokens")
        if permutation is None:
            order = self._order(tokens, x.device) if loop and groups > 1 else None
        else:
            _check_permutation(permutation.tolist(), tokens)
            order = permutation.to(x.device)
        x = x if order is None else x[:, order]
        sliced = x.reshape(batch * groups, tokens // groups, -1)
        mixed = self.attend(*self.heads(sliced)).reshape(batch, tokens, -1)
        return self.finish(mixed if order is None else mixed[:, order.argsort()])

    def _order(self, tokens: int, device: torch.device) -> Tensor | None:
        name = self.permutation if self.training else self.eval_permutation
        if name == "random":
            return torch.randperm(tokens, device=device)
        fixed = name == "fixed"
        return torch.tensor(self.fixed_permutation(tokens), device=device) if fixed else None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={list(self.groups)}"


def _check_permutation(order: list[int], tokens: int) -> None:
    if sorted(order) != list(range(tokens)):
        raise ValueError(f"no permutation of {tokens} tokens: it must hold each index once")


def naive_sliced_attention(
    part: SlicedAttention, x: Tensor, groups: int, permutation: Tensor | None = None
) -> Tensor:
    """What the part gives, from the scores of all tokens, those outside the slice taken out."""
    tokens = x.shape[1]
    order = torch.arange(tokens) if permutation is None else permutation
    group_of = torch.empty(tokens, dtype=torch.long)
    for place, token in enumerate(order.tolist()):
        group_of[token] = place // (tokens // groups)
    apart = group_of[:, None] != group_of[None]
    q, k, v = part.heads(x)
    scores = (q @ k.transpose(-2, -1) * part.scale).masked_fill(apart, float("-inf"))
    return part.finish((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
