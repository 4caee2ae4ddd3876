"""What stands between a branch and the stream that it is added to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modwright.nn.layouts import Layout

__all__ = ["DropPath", "LayerScale", "ScaledResidual", "drop_path_rates"]


class DropPath(nn.Module):
    """Stochastic depth: in training each sample loses the branch with probability ``rate``.

    What stays is divided by 1 - rate, so the mean does not change. At rate 1 nothing stays.

    Args:
        rate: from 0 to 1.

    Example:
        >>> DropPath(1.0)(torch.ones(2, 3)).sum()
        tensor(0.)
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"a drop rate lies between 0 and 1, not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep if keep else mask)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


def drop_path_rates(rate: float, depths: Sequence[int], endpoint: bool = True) -> list[list[float]]:
    """Rates that grow evenly with depth from 0, one list per stage.

    Args:
        rate: of the last block, or, without ``endpoint``, of the one that would follow it.
        depths: blocks per stage.

    Example:
        >>> drop_path_rates(0.2, [2, 1])
        [[0.0, 0.1], [0.2]]
    """
    total = sum(depths)
    over = max(total - 1, 1) if endpoint else total
    flat = iter([rate * index / over for index in range(total)])
    return [[next(flat) for _ in range(depth)] for depth in depths]


class LayerScale(nn.Module):
    """A learned factor per channel.

    Args:
        dim: channels.
        init: what they start from.
        layout: where the channels are.
    """

    def __init__(self, dim: int, init: float = 1e-5, layout: Layout = "tokens") -> None:
        super().__init__()
        self.init, self.layout = init, layout
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma if self.layout == "tokens" else self.gamma[:, None, None])


class ScaledResidual(nn.Module):
    """a x + b branch with two learned numbers, both 1 at first (arXiv 2111.05297)."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.start = (alpha, beta)
        self.alpha = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, self.start[0])
        nn.init.constant_(self.beta, self.start[1])

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.alpha * x + self.beta * branch
