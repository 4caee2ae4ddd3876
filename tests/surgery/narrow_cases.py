"""Data, and MoDeGPT in one line, for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers import random_data
from modwright.anatomy import Anatomy
from modwright.calibration import CalibrationData
from modwright.data.text import from_sequences
from modwright.surgery import make_method, unsupported_reason
from modwright.surgery.modegpt import PAIRS, MoDeGpt

__all__ = ["data", "even", "method", "pairs_of", "sequences"]


def sequences(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]


def data(model: Any = None, seed: int = 0) -> CalibrationData:
    """For a model that reads text, unless another one is given."""
    if model is not None:
        return random_data(model, count=8, length=24, batch_size=4, seed=seed)
    return from_sequences(sequences(seed), 0, batch_size=4)


def method(**options: Any) -> MoDeGpt:
    found: MoDeGpt = make_method("modegpt", {"round_to": 1, **options})
    return found


def even(*pairs: str, sparsity: float = 0.3, **options: Any) -> MoDeGpt:
    """The same sparsity in every block, for some of the pairs."""
    return method(pairs=pairs or PAIRS, sparsity=sparsity, allocation="uniform", **options)


def pairs_of(model: Any) -> tuple[str, ...]:
    """The pairs that can be narrowed in a model: not queries and keys that are normalized."""
    return tuple(
        pair for pair in PAIRS if unsupported_reason(even(pair), Anatomy.of(model)) is None
    )
