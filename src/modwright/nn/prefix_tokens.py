"""Learned tokens that stand before those of the places: a class token, a distillation token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PrefixTokens"]


class PrefixTokens(nn.Module):
    """Puts learned tokens in front, each a parameter under its own name.

    Args:
        dim: channels.
        names: of the tokens, in order. Names that end with ``_token`` are spared from decay.
        std: of their start.

    Shapes:
        (B, N, C) -> (B, len(names) + N, C).

    Raises:
        ValueError: two tokens have one name.

    Example:
        >>> PrefixTokens(8, ["cls_token"])(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 6, 8])
    """

    def __init__(self, dim: int, names: Sequence[str] = ("cls_token",), std: float = 0.02) -> None:
        super().__init__()
        if len(set(names)) < len(names):
            raise ValueError(f"two prefix tokens have one name: {', '.join(names)}")
        self.names, self.std = tuple(names), std
        for name in self.names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for token in self.parameters():
            nn.init.trunc_normal_(token, std=self.std)

    def forward(self, x: Tensor) -> Tensor:
        prefix = [self.get_parameter(name).expand(x.shape[0], -1, -1) for name in self.names]
        return torch.cat((*prefix, x), dim=1)

    def extra_repr(self) -> str:
        return ", ".join(self.names)
