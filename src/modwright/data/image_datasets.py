"""Labeled images by name, and those of a folder: class folders, metadata, or the files of MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data.idx_files import idx_arrays, is_idx_folder
from modwright.data.image_files import find_images, permutation
from modwright.data.image_metadata import find_listed_images, has_metadata
from modwright.data.image_rows import ImageArrays, ImageFileList, ImageSplits, image_data
from modwright.data.registry import data_kind, dataset

__all__ = ["digits", "fashion_mnist", "image_path"]

_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


def image_path(
    path: str,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    field: str = "label",
    classes: Sequence[str] | None = None,
) -> ImageSplits:
    """The images of a folder, by the conventions of imagefolder.

    Folders in it are classes, or splits (``train`` and ``val``) with such folders; or a file
    ``metadata.csv`` (or .jsonl, .parquet) names the images in a column ``file_name``. The four
    files of (Fashion-)MNIST are read, too.

    Args:
        path: of the folder.
        held_out: share of each class that is to measure on where the folder has no splits; 1 is
            all of them.
        seed: of the order, and of what is held out.
        field: the column of metadata that holds the label.
        classes: names of the labels of idx files other than (Fashion-)MNIST.

    Raises:
        InvalidInputError: fewer than two classes, too few images for two splits, metadata that does
            not go with the files.
        CheckpointError: there is no such folder, or a file is damaged.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if is_idx_folder(folder):
        return _of_idx(folder, classes)
    if classes is not None:
        raise InvalidInputError(f"{folder}: `classes` names the labels of idx files alone")
    if has_metadata(folder):
        found = find_listed_images(folder, field, held_out, seed)
    else:
        found = find_images(folder, held_out, seed)
    splits = [
        ImageFileList(
            folder,
            tuple(str(file.relative_to(folder)) for file, _ in files),
            torch.tensor([label for _, label in files], dtype=torch.long),
        )
        for _, files in found.splits
    ]
    return ImageSplits(splits[0], splits[1], found.classes, notes=found.notes)


data_kind(
    "images",
    path=image_path,
    paths="the path of a folder of images: one folder for each class, or metadata.csv",
    measured_by="accuracy",
)(image_data)


@dataset(
    "digits",
    "images",
    license="CC-BY-4.0",
    source="1,797 handwritten digits of 8 x 8 pixels (UCI, E. Alpaydin and C. Kaynak), in "
    "scikit-learn",
)
def digits(image_size: int = 32, train: int = 1297, seed: int = 0) -> ImageSplits:
    """Handwritten digits, made larger.

    Args:
        image_size: pixels of a side.
        train: how many of a permutation are to learn from; the others are to measure on.
        seed: of the permutation.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InvalidInputError(
            "the digits come with scikit-learn: pip install scikit-learn"
        ) from None
    found: Any = load_digits()
    count = len(found.target)
    if not 1 <= train < count:
        raise InvalidInputError(
            f"of {count} digits 1 to {count - 1} can be for training, not {train}"
        )
    order = permutation(count, seed)
    pixels = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(found.target, dtype=torch.long)[order]
    splits = [
        ImageArrays(pixels[part], labels[part]) for part in (slice(train), slice(train, None))
    ]
    return ImageSplits(splits[0], splits[1], tuple("0123456789"), 0.3, 0.35)


@dataset(
    "fashion-mnist",
    "images",
    license="MIT",
    source="70,000 photos of clothes by Zalando, 28 x 28 pixels, in Debian's package "
    "dataset-fashion-mnist",
)
def fashion_mnist(image_size: int = 32) -> ImageSplits:
    """Clothes in gray, ten kinds of them.

    Args:
        image_size: pixels of a side.
    """
    if not Path(_FASHION_MNIST).is_dir():
        raise InvalidInputError(
            f"fashion-mnist is {_FASHION_MNIST} of the system's package dataset-fashion-mnist, "
            "which is not installed: apt install dataset-fashion-mnist; or give the folder of its "
            "four files"
        )
    return _of_idx(Path(_FASHION_MNIST), None)


def _of_idx(folder: Path, classes: Sequence[str] | None) -> ImageSplits:
    (train, test), names = idx_arrays(folder, classes)
    return ImageSplits(ImageArrays(*train), ImageArrays(*test), names, 0.286, 0.353)
