"""SMT (arXiv 2307.08579) on few real images: modulation in early stages against attention.

One training differs from the next by as much as the structures do, so the mean of several seeds is
compared: with MODWRIGHT_FIGURES of sixteen instead of four, and the figures are written down.
"""

from __future__ import annotations

from typing import Any

import pytest
from figures import FULL
from small_images import mean_accuracy

from labeled_images import digits, first
from modwright.models import create_model

pytestmark = pytest.mark.slow

SEEDS = tuple(range(16 if FULL else 4))
SIZES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "mlp_ratios": 2}
SIZES |= {"num_heads": [2, 2, 3, 4]}


def accuracy(name: str, **fields: Any) -> float:
    """Mean test accuracy of one structure in percent, trained on 150 images."""

    def make() -> Any:
        return create_model("smt_tiny", num_classes=10, drop_path_rate=0.0, **SIZES, **fields)

    settings = {"epochs": 20, "batch_size": 32}
    return mean_accuracy(f"smt-{name}", make, first(digits(), 150, 500), SEEDS, **settings)


def test_modulation_of_four_scales_beats_attention_in_all_blocks() -> None:
    four = accuracy("four-scales", modulation_heads=4)
    attention = accuracy("attention", token_mixers="attention")
    assert four - attention >= 0.5, (four, attention)
    if FULL:  # reported only: on maps of 8 x 8 and less, larger kernels than 3 x 3 bring nothing
        accuracy("one-scale", modulation_heads=1)
