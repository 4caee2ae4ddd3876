"""Labeled images to learn from, each read and decoded when its row is asked for.

Axes: N images, C channels, h height, w width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.digest import sha256_of, sha256_of_file
from modwright.core.errors import InvalidInputError
from modwright.data.augment import Augmentations, augmentations_of
from modwright.data.dataset import Data, Rows, stack_rows
from modwright.data.image_files import read_image

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageArrays", "ImageFileList", "ImagePreparation", "ImageRows", "ImageSource"]
__all__ += ["ImageSplits", "image_data"]

_DRAW = "draw"  # key of a row that collating takes out: what is random in its batch
_LARGEST = 2**31


class ImageSource(Protocol):
    """Images by number, read when they are asked for, and their labels (N,)."""

    @property
    def labels(self) -> Tensor: ...

    def read(self, index: int, /) -> Image.Image | Tensor:
        """An image of Pillow, or (C, h, w) from 0 to 1."""

    def digest(self) -> str:
        """Of all images and labels."""


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images that lie in memory, (N, C, h, w): whole numbers up to 255, or from 0 to 1."""

    pixels: Tensor
    labels: Tensor

    def read(self, index: int) -> Tensor:
        found = self.pixels[index]
        return found if found.is_floating_point() else found.float() / 255

    def digest(self) -> str:
        return sha256_of(f"{tuple(self.pixels.shape)}", self.pixels, self.labels)


@dataclass(frozen=True, eq=False)
class ImageFileList:
    """Files of images; nothing of them is kept in memory but their paths.

    Attributes:
        folder: that paths are relative to.
        paths: of the files.
        labels: (N,) indices of their classes.
        reader: makes an image of a file.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: Tensor
    reader: Callable[[Path], Any] = read_image

    def read(self, index: int) -> Any:
        return self.reader(self.folder / self.paths[index])

    def digest(self) -> str:
        parts = [f"{path} {sha256_of_file(self.folder / path)}\n" for path in self.paths]
        return sha256_of(*parts, self.labels)


@dataclass(frozen=True)
class ImageSplits:
    """What a dataset of the kind "images" makes.

    Attributes:
        train: images to learn from.
        test: images to measure on; None where there are none.
        classes: names of the labels.
        mean: of pixels from 0 to 1, over all channels or of each.
        std: their standard deviation.
        notes: sentences on what was left out, and how the splits were made.
    """

    train: ImageSource
    test: ImageSource | None
    classes: tuple[str, ...]
    mean: float | tuple[float, ...] = 0.45
    std: float | tuple[float, ...] = 0.225
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImagePreparation:
    """How an image becomes what a model reads: the same for learning, measuring and predicting.

    Attributes:
        image_size: pixels of a side.
        channels: 3, or 1 for gray.
        crop_pct: share of the shorter side that is taken, from the middle.
        mean: that pixels from 0 to 1 are normalized with, and ``std`` likewise.
    """

    image_size: int
    channels: int = 3
    crop_pct: float = 1.0
    mean: float | tuple[float, ...] = 0.45
    std: float | tuple[float, ...] = 0.225

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InvalidInputError(f"channels is 1 or 3, not {self.channels}")
        if not 1 <= self.image_size <= 4096:
            raise InvalidInputError(f"image_size lies in 1..4096, not {self.image_size}")
        if not 0 < self.crop_pct <= 1:
            raise InvalidInputError(f"crop_pct lies in (0, 1], not {self.crop_pct:g}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.channels:
                raise InvalidInputError(
                    f"{name} has {len(value)} values for {self.channels} channels"
                )
            if name == "std" and min(np.atleast_1d(value)) <= 0:
                raise InvalidInputError("std is above 0")

    @property
    def resized_side(self) -> int:
        """Pixels of the shorter side of an image before its middle is taken."""
        return int(self.image_size / self.crop_pct)

    def resized(self, image: Image.Image) -> Image.Image:
        """The middle of an image, as large as is wanted."""
        from PIL import Image

        shorter, size = min(image.size), self.image_size
        width, height = (int(self.resized_side * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return image.crop((left, top, left + size, top + size))

    def processor(self) -> dict[str, Any]:
        """The same as the ``preprocessor_config.json`` of an image processor of transformers."""
        mean, std = ([float(v) for v in np.broadcast_to(x, 3)] for x in (self.mean, self.std))
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.resized_side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": self.image_size, "width": self.image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        }

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """(C, h, w), normalized, of an image of any size or of (1 or 3, h, w) from 0 to 1."""
        if not isinstance(image, Tensor):
            image = _from_pillow(self.resized(image), self.channels)
        elif image.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
            image = resized[0]
        return self.normalized(image)

    def normalized(self, image: Tensor) -> Tensor:
        """(1 or 3, h, w) from 0 to 1, with as many channels as are wanted."""
        if image.shape[0] == 1:
            image = image.expand(self.channels, -1, -1)
        mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (self.mean, self.std))
        return ((image - mean) / std).contiguous()


def _from_pillow(image: Image.Image, channels: int = 3) -> Tensor:
    """(C, h, w) from 0 to 1."""
    numbers = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(numbers.copy().reshape(*numbers.shape[:2], -1)).permute(2, 0, 1) / 255


def _to_pillow(image: Image.Image | Tensor) -> Image.Image:
    if not isinstance(image, Tensor):
        return image
    from PIL import Image

    numbers = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(numbers.squeeze(-1) if numbers.shape[-1] == 1 else numbers).convert(
        "RGB"
    )


@dataclass(eq=False)
class ImageRows:
    """Images as rows of ``pixel_values`` (C, h, w) and ``labels``; what is random is drawn anew.

    What is drawn depends on the seed, the epoch and the number of the row alone, so a training that
    goes on from a checkpoint sees what it would have seen.

    Example:
        >>> images = ImageArrays(torch.zeros(2, 1, 8, 8), torch.tensor([1, 0]))
        >>> rows = ImageRows(images, ImagePreparation(4, mean=0.0, std=1.0))
        >>> len(rows), rows[0]["pixel_values"].shape, rows[0]["labels"]
        (2, torch.Size([3, 4, 4]), tensor(1))
    """

    source: ImageSource
    preparation: ImagePreparation
    augment: Augmentations = field(default_factory=Augmentations)
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Rows:
        index = range(len(self))[index]
        image, label = self.source.read(index), self.source.labels[index]
        if not self.augment:
            return {"pixel_values": self.preparation.pixels(image), "labels": label}
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        if self.augment.on_images:
            given = self.augment.image(_to_pillow(image), self.preparation.image_size, draw)
            shape = (self.preparation.image_size,) * 2
            if given.size != shape:
                given = self.preparation.resized(given)
            pixels = self.preparation.normalized(_from_pillow(given, self.preparation.channels))
        else:
            pixels = self.preparation.pixels(image)
        row = {"pixel_values": self.augment.pixels(pixels, draw), "labels": label}
        if self.augment.on_batches:
            row[_DRAW] = torch.tensor(draw.randrange(_LARGEST))
        return row

    def set_epoch(self, epoch: int) -> None:
        """What follows is drawn for this epoch; in one process transformers' Trainer says it."""
        self.epoch = epoch

    def digest(self) -> str:
        """Of the images, and of how they are prepared; not of what is drawn."""
        return sha256_of(self.source.digest(), repr(self.preparation))


def _mixed_batch(
    rows: Sequence[Rows], augment: Augmentations, num_classes: int
) -> dict[str, Tensor]:
    """A batch whose images are mixed with each other: labels become (B, classes)."""
    if _DRAW not in rows[0]:  # rows to measure on
        return stack_rows(rows)
    batch = stack_rows(rows)
    draw = random.Random(" ".join(map(str, batch.pop(_DRAW).tolist())))
    return augment.batch(batch, num_classes, draw)


def image_data(
    made: Any,
    *,
    image_size: int = 224,
    channels: int = 3,
    crop_pct: float = 1.0,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    augment: Sequence[Any] = (),
    seed: int = 0,
) -> Data:
    """Labeled images, resized and normalized, and augmented where they are learned from.

    Args:
        made: an :class:`ImageSplits`.
        image_size: pixels of a side; the shorter side of an image fits, and the middle is taken.
        channels: 3, or 1 for gray.
        crop_pct: share of the shorter side that is taken.
        mean: that pixels from 0 to 1 are normalized with, one number or one a channel; None takes
            what the dataset says.
        std: the standard deviation, likewise.
        augment: what is drawn for images to learn from, by name or as ``{name: {option: value}}``;
            see :mod:`modwright.data.augment`.
        seed: of what is drawn.

    Raises:
        InvalidInputError: a number outside its range, an unknown augmentation, or something that is
            no :class:`ImageSplits`.
    """
    if not isinstance(made, ImageSplits):
        raise InvalidInputError(f"images are made as ImageSplits, not {type(made).__name__}")
    preparation = ImagePreparation(
        image_size,
        channels,
        crop_pct,
        made.mean if mean is None else mean,
        made.std if std is None else std,
    )
    chosen = augmentations_of(augment)
    collate: Any = stack_rows
    if chosen.on_batches:
        collate = partial(_mixed_batch, augment=chosen, num_classes=len(made.classes))
    return Data(
        ImageRows(made.train, preparation, chosen, seed),
        None if made.test is None else ImageRows(made.test, preparation),
        collate,
        made.classes,
        made.notes,
        processor=preparation.processor() if channels == 3 else {},
    )
