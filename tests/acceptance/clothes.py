"""Fashion-MNIST where Debian's package dataset-fashion-mnist is installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from labeled_images import images
from modwright.data import Data

__all__ = ["FOLDER", "clothes", "needs_clothes"]

FOLDER = Path("/usr/share/datasets/fashion-mnist")

needs_clothes = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


@cache
def clothes() -> Data:
    """60,000 images for training and 10,000 for testing, of 28 pixels, made 32."""
    return images("fashion-mnist")
