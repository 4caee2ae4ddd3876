"""DuoFormer (arXiv 2506.12982) on real images: beside its own backbone, and its parts.

Without MODWRIGHT_FIGURES briefly, on digits; with it three seeds are taken, on Fashion-MNIST where
it is there, and the figures are written down.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clothes import FOLDER, clothes
from figures import FULL, note
from small_images import mean_accuracy
from torch import Tensor, nn
from torch.nn import functional as F

from labeled_images import digits, first, pixels
from modwright.data import Data
from modwright.models import create_model
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.nn.conv_backbone import ConvBackbone
from modwright.training import Settings, fit

pytestmark = pytest.mark.slow

figures_only = pytest.mark.skipif(not FULL, reason="measured where MODWRIGHT_FIGURES is set")
ON_CLOTHES = FULL and FOLDER.is_dir()
SEEDS = (0, 1, 2) if FULL else (0,)
WIDTHS = [16, 32, 64, 128]
FEW = {"epochs": 8, "batch_size": 32}
MANY = {"epochs": 1, "batch_size": 32}


def data(count: int) -> Data:
    return first(clothes() if ON_CLOTHES else digits(), count, 2000 if ON_CLOTHES else 500)


class Pyramid(PyramidClassifier):
    """The backbone alone: the mean of its last map, and a linear layer."""

    def __init__(self) -> None:
        super().__init__(ImageConfig(image_size=32, num_labels=10))
        self.stem, self.stages = nn.Identity(), ConvBackbone(3, WIDTHS).stages
        self.finish(None, WIDTHS[-1], WIDTHS, stride=1)


def duoformer(**fields: Any) -> Any:
    """A last grid of 4 x 4 cells, three scales: 1 + 4 + 16 tokens and a scale token per cell."""
    chosen: dict[str, Any] = {
        "backbone": "pyramid",
        "backbone_fields": {"widths": WIDTHS},
        "image_size": 32,
        "hidden_size": 48,
        "depths": 2,
        "patch_depth": 2,
        "num_heads": 3,
        "init_std": 0.08,  # 0.02 is for 768 channels: from it next to nothing is learned in time
        "num_classes": 10,
    }
    return create_model("duoformer_resnet18_scales3_224", **{**chosen, **fields})


WHOLE_BLOCKS = {"patch_residual": True, "head_norm": True}
LAST_STAGE = {"scales": 2, "depths": 0, "scale_token": "none"}  # the other scale is not read
STRUCTURES: dict[str, Any] = {
    "duoformer": duoformer,
    "duoformer, whole blocks over cells": lambda: duoformer(**WHOLE_BLOCKS),
    "hybrid": lambda: duoformer(**LAST_STAGE, **WHOLE_BLOCKS),
    "pyramid": Pyramid,
    "no scale attention": lambda: duoformer(**LAST_STAGE),
    "no patch attention": lambda: duoformer(patch_depth=0, global_pool="avg"),
    "no scale token": lambda: duoformer(scale_token="none"),
}
COMPARED = ["duoformer", "hybrid", "pyramid"]


def accuracies(names: list[str], count: int, settings: dict[str, Any]) -> dict[str, float]:
    return {
        name: mean_accuracy(
            f"duoformer-{count}-{name}", STRUCTURES[name], data(count), SEEDS, **settings
        )
        for name in names
    }


def test_500_images() -> None:
    """Beside its backbone and a hybrid, and without each of its parts."""
    found = accuracies(list(STRUCTURES) if FULL else ["duoformer", "hybrid"], 500, FEW)
    # DuoFormer was to be at least as good as the hybrid. It is not, with so few images and no
    # pretrained backbone: 67.1 against 77.9 % of Fashion-MNIST. A scale token that knows nothing at
    # first has to learn to look; without it ("none") digits are read as well as by the hybrid.
    assert found["duoformer"] >= 50
    assert found["hybrid"] >= 75


@figures_only
def test_5000_images() -> None:
    if not ON_CLOTHES:
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    found = accuracies(COMPARED, 5000, MANY)
    assert min(found.values()) >= 50


@torch.no_grad()
def alikeness(model: Any, images: Tensor) -> list[float]:
    """Mean cosine between different cells of an image, before and behind each block over them."""
    stream, grid = model.embed(images)
    found = []
    for block in (None, *model.blocks):
        if block is not None:
            stream = model.blocks.run(block, stream, grid)
        regions = F.normalize(stream[:, 1:].double(), dim=-1, eps=1e-60)
        count = regions.shape[1]
        found.append(
            float(((regions @ regions.mT).sum((1, 2)) - count).mean() / (count**2 - count))
        )
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_cells_become_alike_without_residuals(seed: int) -> None:
    """12 blocks over cells, fresh; where figures are wanted, two that were trained as well."""
    few = data(500)
    images = pixels(few.test)[:100]
    found: dict[str, list[float]] = {}
    for name, fields in (("released", {}), ("whole blocks", WHOLE_BLOCKS)):
        torch.manual_seed(seed)
        fresh = duoformer(patch_depth=12, **fields).eval()
        found[name] = alikeness(fresh, images)
        note(f"duoformer-alike-{name}", seed=seed, fresh=found[name])
        if FULL:
            torch.manual_seed(seed)
            model = duoformer(**fields)
            fit(model, few.train, None, Settings(seed=seed, **FEW))
            note(f"duoformer-alike-{name}", seed=seed, trained=alikeness(model, images))
    assert found["released"][-1] > 0.999
    assert found["whole blocks"][-1] < found["released"][-1]
