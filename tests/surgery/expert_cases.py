"""Models split into experts, and how their outputs are compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modwright.anatomy import Anatomy, Mlp
from modwright.calibration import TokenWindows
from modwright.data.text import from_sequences
from modwright.edits import Applied
from modwright.surgery import apply, make_method

__all__ = ["SMALL", "close", "experts_of", "merge", "split", "windows"]

SMALL: dict[str, Any] = {"num_experts": 8, "top_k": 2}


def split(model: Any, **options: Any) -> Applied:
    """With eight experts, two for each token, unless said otherwise."""
    return apply(model, make_method("emoe", {**SMALL, **options}))


def merge(model: Any, **options: Any) -> Applied:
    return apply(model, make_method("emoe_merge", options))


def experts_of(model: Any) -> list[Mlp]:
    """The MLPs that are split."""
    mlps = [block.mlp for block in Anatomy.of(model).blocks]
    return [mlp for mlp in mlps if isinstance(mlp, Mlp) and mlp.experts is not None]


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    """Up to a share of the largest value."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1.0))


def windows() -> TokenWindows:
    import torch

    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]
    return from_sequences(sequences, 0, batch_size=4)
