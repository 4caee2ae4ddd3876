"""TNT (arXiv 2103.00112) on real images: what words inside patches are worth, from scratch.

With MODWRIGHT_FIGURES five seeds are taken instead of three, and the figures are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from figures import FULL
from small_images import mean_accuracy

from labeled_images import digits
from modwright.models import create_model

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2, 3, 4) if FULL else (0, 1, 2)
SHARED = {"num_classes": 10, "image_size": 32, "patch_size": 8, "depths": 3, "drop_path_rate": 0.0}
STREAMS = {"inner_stride": 2, "inner_dim": 8, "inner_heads": 2, "hidden_size": 48, "num_heads": 3}
ANSWERS: dict[str, float] = {}


def nested() -> Any:
    return create_model("tnt_s_patch16_224", **SHARED, **STREAMS)


def plain(width: int) -> Callable[[], Any]:
    return lambda: create_model("deit_small_patch16_224", **SHARED, hidden_size=width, num_heads=3)


def without_positions(*names: str) -> Callable[[], Any]:
    """A TNT in which some tables of positions stay zero."""

    def make() -> Any:
        model = nested()
        for name in names:
            table = model.get_parameter(f"{name}.table").requires_grad_(False)
            table.data.zero_()
        return model

    return make


def accuracy(name: str, make: Callable[[], Any]) -> float:
    """Mean test accuracy of one structure, in percent; each is trained once."""
    if name not in ANSWERS:
        settings = {"epochs": 12, "batch_size": 64}
        ANSWERS[name] = mean_accuracy(f"tnt-{name}", make, digits(), SEEDS, **settings)
    return ANSWERS[name]


def test_words_are_worth_more_than_a_wider_transformer() -> None:
    # 115,722 parameters against 119,134
    pixel_tokens, wide = accuracy("nested", nested), accuracy("plain-54", plain(54))
    assert pixel_tokens - wide >= 1, (pixel_tokens, wide)


@pytest.mark.skipif(not FULL, reason="the wider one is the harder to beat")
def test_words_are_worth_more_than_the_outer_stream_alone() -> None:
    pixel_tokens, narrow = accuracy("nested", nested), accuracy("plain-48", plain(48))
    assert pixel_tokens - narrow >= 1, (pixel_tokens, narrow)


@pytest.mark.skipif(not FULL, reason="a figure of the page")
def test_positions_of_sentences_and_of_words() -> None:
    accuracy("no-sentence-positions", without_positions("positions"))
    accuracy("no-word-positions", without_positions("word_positions"))
    accuracy("no-positions", without_positions("positions", "word_positions"))
