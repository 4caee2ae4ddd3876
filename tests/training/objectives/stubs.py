"""Models of few words, for objectives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Says(nn.Module):
    """Gives logits of its own, whatever it is shown, and keeps what that was."""

    def __init__(self, logits: Tensor, generates: bool = False) -> None:
        super().__init__()
        self.logits, self.generates = nn.Parameter(logits), generates
        self.seen: dict[str, Tensor] = {}
        self.config = SimpleNamespace()

    def forward(self, **batch: Tensor) -> Any:
        self.seen = batch
        return SimpleNamespace(logits=self.logits)

    def can_generate(self) -> bool:
        return self.generates


def tokens(rows: int = 2, length: int = 7, vocabulary: int = 9, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (rows, length), generator=draw)


def logits(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2
