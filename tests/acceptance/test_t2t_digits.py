"""T2T-ViT (arXiv 2101.11986) on few real images: its stem against hard patches, from scratch.

With MODWRIGHT_FIGURES five seeds are taken instead of three, others stand beside, and the figures
are written down.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from figures import FULL
from small_images import mean_accuracy

from labeled_images import digits, first
from modwright.models import create_model

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2, 3, 4) if FULL else (0, 1, 2)
FEW = 200
SHARED = {"num_classes": 10, "image_size": 32, "drop_path_rate": 0.0, "mlp_ratio": 2}
BACKBONE = {"hidden_size": 48, "depths": 4, "num_heads": 3}


def with_stem(stem: str, **backbone: Any) -> Any:
    """The backbone behind one of the stems; 16 x 16 pixels become a token in all of them."""
    chosen = {**SHARED, **BACKBONE, **backbone}
    return create_model("t2t_vit_14", **chosen, token_dim=16, stem=stem)


def plain() -> Any:
    """The backbone of DeiT, which learns its positions and has biases on its maps, too."""
    return create_model("deit_small_patch16_224", **SHARED, **BACKBONE)


STRUCTURES = {"deit": plain} | {
    stem: partial(with_stem, stem) for stem in ("performer", "transformer", "convolution", "patch")
}
SHAPES = {
    "deep": {"hidden_size": 32, "depths": 8, "num_heads": 4},
    "wide": {"hidden_size": 88, "depths": 1, "num_heads": 4},
}


def accuracy(name: str) -> float:
    """Mean test accuracy in percent of a training on the first 200 images."""
    few = first(digits(), FEW, 500)
    settings = {"epochs": 25, "batch_size": 32}
    return mean_accuracy(f"t2t-{name}", STRUCTURES[name], few, SEEDS, **settings)


def test_soft_splits_see_more_in_few_images_than_hard_patches() -> None:
    # 99,200 parameters that are trained, against 112,810
    soft, hard = accuracy("performer"), accuracy("patch")
    assert soft - hard >= 1.5, (soft, hard)


@pytest.mark.skipif(not FULL, reason="figures of the page")
@pytest.mark.parametrize("name", ["deit", "transformer", "convolution"])
def test_others_stand_beside(name: str) -> None:
    accuracy(name)


@pytest.mark.skipif(not FULL, reason="figures of the page")
def test_all_images_and_other_shapes_of_the_backbone() -> None:
    """Where the paper's directions end: nothing is asked of them."""
    for stem in ("performer", "patch"):
        make, settings = STRUCTURES[stem], {"epochs": 25, "batch_size": 32}
        mean_accuracy(f"t2t-{stem}-all", make, digits(), SEEDS[:2], **settings)
    for shape, fields in SHAPES.items():
        make, settings = partial(with_stem, "performer", **fields), {"epochs": 8, "batch_size": 64}
        mean_accuracy(f"t2t-{shape}", make, digits(), SEEDS, **settings)
