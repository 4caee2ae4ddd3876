"""MetaFormer (arXiv 2111.11418) on real images: what its parts are worth, trained from scratch.

With MODWRIGHT_FIGURES three seeds are taken instead of two, and the figures are written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from figures import FULL
from small_images import mean_accuracy

from labeled_images import digits
from modwright.models import create_model
from modwright.nn.block import Block

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2) if FULL else (0, 1)
SHORT = {"depths": [1, 1, 2], "hidden_sizes": [24, 48, 64]}
DEEP = {"depths": [2, 2, 6, 2], "hidden_sizes": [16, 24, 32, 48]}


def accuracies(name: str, settings: dict[str, Any], seeds: tuple[int, ...], **fields: Any) -> float:
    """Mean test accuracy of one structure, in percent."""

    def make() -> Any:
        return create_model(
            "poolformer_s12",
            num_classes=10,
            drop_path_rate=0.0,
            stem=[3, 2, 1],
            layer_scale_init=0.1,
            **fields,
        )

    return mean_accuracy(f"metaformer-{name}", make, digits(), seeds, **settings)


@contextmanager
def without_residuals() -> Iterator[None]:
    """Blocks give their branch alone while the context lasts."""
    kept = Block._add
    Block._add = lambda self, x, branch, scale, residual: branch if scale is None else scale(branch)
    try:
        yield
    finally:
        Block._add = kept


def test_pooling_mixes_tokens_and_norms_are_needed() -> None:
    settings = {"epochs": 12, "batch_size": 64}
    pooled = accuracies("pool", settings, SEEDS, **SHORT)
    alone = accuracies("identity", settings, SEEDS, **SHORT, token_mixers="identity")
    unnormed = accuracies("no-norm", settings, SEEDS, **SHORT, norm="none")
    assert pooled - alone >= 3, (pooled, alone)
    assert pooled - unnormed >= 2, (pooled, unnormed)


def test_a_deep_pyramid_needs_its_residuals() -> None:
    settings = {"epochs": 5, "batch_size": 32}
    seeds = SEEDS if FULL else SEEDS[:1]
    whole = accuracies("deep", settings, seeds, **DEEP)
    with without_residuals():
        bare = accuracies("deep-no-residual", settings, seeds, **DEEP)
    assert whole - bare >= 10, (whole, bare)
