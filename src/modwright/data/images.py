"""Labelled images (N, C, H, W) for training and measuring classifiers: deterministic, offline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.data import image_datasets
from modwright.data.idx_files import idx_arrays
from modwright.data.image_files import find_images, read_image

__all__ = ["Pictures", "digits", "folder_pictures", "idx_pictures"]


@dataclass(frozen=True)
class Pictures:
    """Images in memory, ready for a model: a dataset as transformers' Trainer takes it.

    Attributes:
        pixels: (N, C, H, W), normalized.
        labels: (N,) indices of ``classes``.
        notes: sentences on what was left out, and how the splits were made.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0])
        >>> images = Pictures("none", torch.zeros(4, 3, 8, 8), labels, ("a", "b"))
        >>> len(images.take(2)), images[1]["labels"]
        (2, tensor(1))
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}

    def take(self, count: int) -> Pictures:
        """The first ``count`` of them; more than there are are refused."""
        if not 1 <= count <= len(self):
            raise InvalidInputError(f"{self.name} has {len(self)} images, not {count}")
        first: dict[str, Any] = {"pixels": self.pixels[:count], "labels": self.labels[:count]}
        return replace(self, name=f"{self.name}, first {count}", **first)


def _prepared(raw: Tensor, side: int, channels: int, mean: float, spread: float) -> Tensor:
    """(N, C, H, W) from 0 to 1 -> resized, with as many channels as are wanted, normalized."""
    if raw.shape[-2:] != (side, side):
        raw = F.interpolate(raw, size=(side, side), mode="bilinear", align_corners=False)
    if raw.shape[1] == 1:
        raw = raw.expand(-1, channels, -1, -1)
    return ((raw - mean) / spread).contiguous()


def digits(
    side: int = 32, channels: int = 3, train: int = 1297, seed: int = 0
) -> tuple[Pictures, Pictures]:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings, made larger.

    Args:
        side: of the images, in pixels.
        channels: copies of the one channel.
        train: how many of a permutation are for training; the others are for testing.
        seed: of the permutation.

    Raises:
        InvalidInputError: scikit-learn is not installed, or nothing is left for one of the splits.

    Example:
        >>> train, test = digits(side=16)
        >>> len(train), len(test), train.pixels.shape[1:]
        (1297, 500, torch.Size([3, 16, 16]))
    """
    found = image_datasets.digits(side, train, seed)

    def part(split: str, source: Any) -> Pictures:
        pixels = _prepared(source.pixels, side, channels, 0.3, 0.35)
        name = f"digits, {split}, seed {seed}, {side} x {side}"
        return Pictures(name, pixels, source.labels, found.classes)

    return part("train", found.train), part("test", found.test)


def idx_pictures(
    folder: str | Path, side: int = 32, channels: int = 3, classes: Sequence[str] | None = None
) -> tuple[Pictures, Pictures]:
    """Training and test images of a folder that holds the four files of (Fashion-)MNIST.

    Debian's package ``dataset-fashion-mnist`` puts them into /usr/share/datasets/fashion-mnist.

    Args:
        folder: with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same beginning
            with ``t10k``; each may end in ``.gz``.
        side: of the images, in pixels.
        channels: copies of the one channel.
        classes: names of the labels. Those of MNIST and of Fashion-MNIST are known; other sets need
            them.

    Raises:
        CheckpointError: a file is missing or damaged.
        InvalidInputError: images and labels do not go together, or the names of the labels are not
            known.
    """
    folder = Path(folder)
    arrays, names = idx_arrays(folder, classes)

    def part(split: str, images: Tensor, labels: Tensor) -> Pictures:
        pixels = _prepared(images.float() / 255, side, channels, 0.286, 0.353)
        return Pictures(f"{folder.name}, {split}, {side} x {side}", pixels, labels, names)

    return part("train", *arrays[0]), part("test", *arrays[1])


def folder_pictures(
    folder: str | Path, side: int = 224, test: float = 0.2, seed: int = 0
) -> tuple[Pictures, Pictures]:
    """Images of a folder with one folder per class, split as ``find_images`` says.

    Each is resized so that its shorter side fits, and the middle is taken.

    Args:
        folder: its folders are the classes, by name; files in them are the images.
        side: of the images, in pixels.
        test: share of each class that is for testing where the folder has no splits.
        seed: of the order, and of what is for testing.

    Warns:
        UserWarning: of what was left out, and how the splits were made; ``notes`` hold it, too.

    Raises:
        InvalidInputError: there are fewer than two classes, or too few images for two splits.
        CheckpointError: a file is no image.
    """
    from PIL import Image, ImageOps

    folder, cubic = Path(folder), Image.Resampling.BICUBIC
    found = find_images(folder, test, seed)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)

    def part(split: str, files: list[tuple[Path, int]]) -> Pictures:
        fitted = (ImageOps.fit(read_image(path), (side, side), cubic) for path, _ in files)
        raw = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in fitted])
        labels = torch.tensor([label for _, label in files])
        return Pictures(
            f"{folder.name}, {split}, {side} x {side}",
            _prepared(raw.permute(0, 3, 1, 2).float() / 255, side, 3, 0.45, 0.225),
            labels,
            found.classes,
            found.notes,
        )

    train, held_out = (part(split, files) for split, files in found.splits)
    return train, held_out
