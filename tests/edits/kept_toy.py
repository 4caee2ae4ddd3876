"""A token mixer that keeps some of its tensors in float32; other processes import it, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modwright.edits import register_part
from modwright.nn.component import component

__all__ = ["Decaying", "register"]


class Decaying(nn.Module):
    """A linear layer whose output decays, channel by channel, by a rate that needs its digits."""

    keep_in_fp32 = ("A_log", "inner.bias", "scale", "other")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(width))
        self.inner = nn.Linear(width, width)
        self.register_buffer("scale", torch.empty(()))
        self.register_buffer("scratch", torch.empty(2), persistent=False)
        self.other = None  # a parameter of another variant
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.A_log, 0.1, 0.9)
        nn.init.normal_(self.inner.weight, std=0.02)
        nn.init.uniform_(self.inner.bias, -0.1, 0.1)
        self.get_buffer("scale").fill_(1 / 3)
        self.get_buffer("scratch").fill_(3)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wide = self.A_log.dtype
        y = nn.functional.linear(x.to(wide), self.inner.weight.to(wide), self.inner.bias)
        mixed: Tensor = y * torch.exp(-self.A_log.exp()) * self.get_buffer("scale")
        return mixed.to(x.dtype)


def make(config: Any, width: int) -> nn.Module:
    """What stands in an edit under the name ``decaying``."""
    return Decaying(width)


def register() -> None:
    """Makes the component known, and placeable."""
    component("decaying", kind="token_mixer", causal=True)(Decaying)
    register_part("decaying")(make)
