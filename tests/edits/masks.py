"""Masks of two sequences, of which the second begins with padding."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LENGTH", "REAL", "visible"]

LENGTH = 5
REAL = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()


def visible(real: Tensor = REAL, seen: int = 0, total: int | None = None) -> Tensor:
    """A causal mask of scores (B, 1, L, S) over ``seen`` tokens before, all real, and the new."""
    length = real.shape[1]
    columns = torch.ones(len(real), total or seen + length, dtype=torch.bool)
    columns[:, seen : seen + length] = real
    causal = torch.ones(length, columns.shape[1], dtype=torch.bool).tril(seen)
    return (causal & columns.unsqueeze(1)).unsqueeze(1)
