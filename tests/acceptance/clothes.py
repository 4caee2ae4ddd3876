"""Fashion-MNIST where Debian's package dataset-fashion-mnist is installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from labeled_images import augmented, images
from modwright.data import Data

__all__ = ["AUGMENT", "FOLDER", "augmented_clothes", "clothes", "needs_clothes"]

FOLDER = Path("/usr/share/datasets/fashion-mnist")

# What is usual for images of 28 pixels: turned around, cut out of a little, a patch of noise.
AUGMENT: list[Any] = [
    {"random_resized_crop": {"scale": [0.7, 1.0]}},
    "hflip",
    {"random_erasing": {"probability": 0.25, "mode": "pixel"}},
]

needs_clothes = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


@cache
def clothes() -> Data:
    """60,000 images for training and 10,000 for testing, of 28 pixels, made 32."""
    return images("fashion-mnist")


def augmented_clothes(train: int, test: int) -> Data:
    """The first of them, augmented; those to measure on are as they are."""
    return augmented("fashion-mnist", AUGMENT, train, test)
