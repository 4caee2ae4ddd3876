"""Data, and MoDeGPT in one line, for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modwright.calibration import TokenWindows
from modwright.calibration.text import from_sequences
from modwright.surgery import make_method
from modwright.surgery.modegpt import PAIRS, MoDeGpt

__all__ = ["data", "even", "method", "sequences"]


def sequences(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]


def data(seed: int = 0) -> TokenWindows:
    return from_sequences(sequences(seed), 0, batch_size=4)


def method(**options: Any) -> MoDeGpt:
    found: MoDeGpt = make_method("modegpt", {"round_to": 1, **options})
    return found


def even(*pairs: str, sparsity: float = 0.3, **options: Any) -> MoDeGpt:
    """The same sparsity in every block, for some of the pairs."""
    return method(pairs=pairs or PAIRS, sparsity=sparsity, allocation="uniform", **options)
