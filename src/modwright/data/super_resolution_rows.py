"""Small images with large ones as data: the photos of scikit-learn, or a folder of one's own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modwright.core.digest import sha256_of, sha256_of_file
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data.dataset import Data, Rows
from modwright.data.image_files import is_image, permutation, read_image
from modwright.data.registry import data_kind, dataset
from modwright.data.super_resolution import (
    SuperResolutionDataset,
    bicubic,
    sample_image_pairs,
)

__all__ = ["ImagePairs", "image_pair_folder", "large_images", "super_resolution_rows"]


@dataclass(eq=False)
class ImagePairs:
    """Pieces of large images and the small ones that are made of them, one for each file.

    A whole image is made smaller before its piece is cut. Pieces to learn from lie anywhere, drawn
    anew in each epoch, turned and mirrored; those to measure on are the middle. Without a ``side``
    images are whole.

    Shapes:
        ``pixel_values`` (3, side, side), ``labels`` (3, scale side, scale side), from 0 to 1.
    """

    paths: tuple[Path, ...]
    scale: int
    side: int | None = None
    drawn: bool = False
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Rows:
        index = range(len(self))[index]
        path = self.paths[index]
        large = _tensor(path)
        height, width = (length // self.scale for length in large.shape[1:])
        if min(height, width) < (self.side or 1):
            raise InvalidInputError(
                f"{path} is {large.shape[2]} x {large.shape[1]}; pieces need "
                f"{(self.side or 1) * self.scale} pixels each way"
            )
        large = large[:, : height * self.scale, : width * self.scale]
        small = (bicubic(large[None], 1 / self.scale)[0] * 255).round().clamp(0, 255) / 255
        if self.side is None:
            return {"pixel_values": small, "labels": large}
        top, left = (height - self.side) // 2, (width - self.side) // 2
        turns, mirrored = 0, False
        if self.drawn:
            draw = random.Random(f"{self.seed} {self.epoch} {index}")
            top, left = draw.randint(0, height - self.side), draw.randint(0, width - self.side)
            turns, mirrored = draw.randrange(4), draw.random() < 0.5
        pair = []
        for image, times in ((small, 1), (large, self.scale)):
            y, x, length = top * times, left * times, self.side * times
            piece = torch.rot90(image[:, y : y + length, x : x + length], turns, (1, 2))
            pair.append((piece.flip(2) if mirrored else piece).contiguous())
        return {"pixel_values": pair[0], "labels": pair[1]}

    def set_epoch(self, epoch: int) -> None:
        """What follows is drawn for this epoch."""
        self.epoch = epoch

    def digest(self) -> str:
        """Of the files and of the sizes; not of what is drawn."""
        files = [f"{path.name} {sha256_of_file(path)}\n" for path in self.paths]
        return sha256_of(*files, f"{self.scale} {self.side}")


def large_images(path: str) -> list[Path]:
    """The images of a folder and of those in it, sorted.

    Raises:
        CheckpointError: there is no such folder.
        InvalidInputError: it holds no images.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and is_image(file)]
    if not files:
        raise InvalidInputError(f"{folder} holds no images")
    return files


def _tensor(path: Path) -> Tensor:
    numbers = np.asarray(read_image(path))
    return torch.from_numpy(numbers.copy()).permute(2, 0, 1).float() / 255


def image_pair_folder(
    path: str, *, scale: int = 2, side: int = 32, held_out: float = 0.2, seed: int = 0
) -> tuple[ImagePairs, ImagePairs]:
    """The images of a folder and of those in it, as large ones.

    Args:
        path: of the folder.
        scale: large pixels for a small one, along each side.
        side: of small pieces.
        held_out: share of the files that is to measure on.
        seed: of the order, and of what is drawn.

    Raises:
        InvalidInputError: a number outside its range, or too few images for two splits.
        CheckpointError: there is no such folder.
    """
    if scale < 2 or side < 1 or not 0 < held_out < 1:
        raise InvalidInputError("scale is at least 2, side above 0, held_out between 0 and 1")
    files = large_images(path)
    count = max(round(len(files) * held_out), 1)
    if count >= len(files):
        raise InvalidInputError(f"{path}: {len(files)} images cannot be split at {held_out:g}")
    order = [files[i] for i in permutation(len(files), seed)]
    train = ImagePairs(tuple(order[count:]), scale, side, True, seed)
    return train, ImagePairs(tuple(sorted(order[:count])), scale, side)


@data_kind(
    "super_resolution", path=image_pair_folder, paths="a folder of images", measured_by="psnr"
)
def super_resolution_rows(made: Any) -> Data:
    """Rows of ``pixel_values`` (C, h, w) and ``labels`` (C, scale h, scale w), from 0 to 1.

    Args:
        made: pairs to learn from, and pairs to measure on.

    Raises:
        InvalidInputError: it is something else.
    """
    kinds = SuperResolutionDataset | ImagePairs
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(m, kinds) for m in made)):
        raise InvalidInputError(
            f"pairs of images are two sets, to learn from and to measure on, not "
            f"{type(made).__name__}"
        )
    return Data(made[0], made[1])


@dataset(
    "photos",
    "super_resolution",
    license="CC-BY-2.0",
    source="two photos of 640 x 427 pixels, by danielbuechele and vultilion, in scikit-learn",
)
def _photos(
    scale: int = 2, side: int = 16, train: int = 4800, test_side: int = 48, seed: int = 0
) -> tuple[SuperResolutionDataset, SuperResolutionDataset]:
    """Pieces of the photos; the middle of each is to measure on.

    Args:
        scale: large pixels for a small one, along each side.
        side: of small pieces to learn from; ``test_side`` is of those to measure on.
        train: how many pieces to learn from, over both photos.
        seed: of the draw.
    """
    return sample_image_pairs(scale, side, train, test_side, seed=seed)
