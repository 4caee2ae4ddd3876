"""Labeled images that classifiers are measured on, decoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.data.image_files import find_images, read_image
from modwright.data.images import digits
from modwright.metrics.registry import Subject

__all__ = ["EvalImages", "ImageOptions", "class_logits", "require_classifier"]

# Where no image processor says how: as images of a folder are prepared for training.
_MEAN, _SPREAD = 0.45, 0.225
# Sums of images are kept in at most so many groups, which stand for windows.
_GROUPS = 200


@dataclass(frozen=True, eq=False)
class EvalImages:
    """Images with the index that the model has for the class of each.

    Attributes:
        labels: (N,) class indices.
        load: makes pixels (B, C, H, W) of the images at these positions.
        recipe: plain values that say which images, and how they are prepared.
    """

    labels: Tensor
    load: Callable[[Sequence[int]], Tensor]
    batch_size: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Of the images and their labels."""
        return str(self.recipe["sha256"])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels, a batch at a time."""
        for positions in torch.arange(len(self)).split(self.batch_size):
            yield self.load(positions.tolist()), self.labels[positions]

    def grouped(
        self, rows: Sequence[tuple[Mapping[str, float], int]]
    ) -> list[tuple[dict[str, float], int]]:
        """The sums of single images added up in at most 200 groups, spread over all."""
        count = min(len(rows), _GROUPS)
        found = []
        for start in range(count):
            part = rows[start::count]
            names = part[0][0]
            sums = {name: float(sum(values[name] for values, _ in part)) for name in names}
            found.append((sums, sum(number for _, number in part)))
        return found


@dataclass(frozen=True)
class ImageOptions:
    """Which images a classifier is measured on."""

    images: str
    image_size: int | None = None
    limit: int | None = None
    batch_size: int = 32

    def read(self, subject: Subject) -> EvalImages:
        """The images with the labels that the model knows; nothing is decoded yet, but for digits.

        Raises:
            CheckpointError: there is no such folder.
            InvalidInputError: a class is none of the model's, or too few images.
        """
        size = self._size(subject.model.config)
        if self.images == "digits":
            return self._digits(subject, size)
        folder = Path(self.images).expanduser()
        found = find_images(folder, test=0.5, seed=0)
        learned, held_out = found.splits
        is_split = not learned[0].startswith("train, seed")
        files = held_out[1] if is_split else sorted(learned[1] + held_out[1])
        files = [files[at] for at in self._chosen(len(files))]
        known, how = _labels(found.classes, subject)
        listed = [
            [str(path.relative_to(folder)), path.stat().st_size, label] for path, label in files
        ]
        prepare, prepared = _preparation(subject, size)
        return EvalImages(
            torch.tensor([known[label] for _, label in files]),
            lambda positions: torch.stack([prepare(read_image(files[at][0])) for at in positions]),
            self.batch_size,
            {
                "data": str(folder) + (f", {held_out[0]}" if is_split else ""),
                "images": len(files),
                "classes": how,
                "prepared": prepared,
                "batch_size": self.batch_size,
                "sha256": sha256_of(listed),
            },
        )

    def _digits(self, subject: Subject, size: tuple[int, int]) -> EvalImages:
        if size[0] != size[1]:
            raise InvalidInputError(f"digits are square, and {subject.name} reads {size}")
        _, test = digits(size[0], int(getattr(subject.model.config, "num_channels", 3)))
        known, how = _labels(test.classes, subject)
        chosen = self._chosen(len(test))
        return EvalImages(
            torch.tensor([known[int(test.labels[at])] for at in chosen]),
            lambda positions: test.pixels[[chosen[at] for at in positions]],
            self.batch_size,
            {
                "data": test.name,
                "images": len(chosen),
                "classes": how,
                "batch_size": self.batch_size,
                "sha256": sha256_of([test.name, chosen]),
            },
        )

    def _chosen(self, count: int) -> list[int]:
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return [at * count // self.limit for at in range(self.limit)]

    def _size(self, config: Any) -> tuple[int, int]:
        given = self.image_size or getattr(config, "image_size", None) or 224
        height, width = (given, given) if isinstance(given, int) else given
        return int(height), int(width)


def _labels(classes: Sequence[str], subject: Subject) -> tuple[list[int], str]:
    """For each class of the images the model's index of it, and how that was found.

    Raises:
        InvalidInputError: the model has no class of that name.
    """
    config = subject.model.config
    names = {str(name): int(index) for index, name in config.id2label.items()}
    if all(name in names for name in classes):
        return [names[name] for name in classes], "by name"
    unnamed = all(name == f"LABEL_{index}" for name, index in names.items())
    if unnamed and len(names) == len(classes):
        return list(range(len(classes))), "by the order of their names, as the model has none"
    missing = next(name for name in classes if name not in names)
    shown = ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")
    raise InvalidInputError(
        f"the images have the class {missing!r}, which {subject.name} has not; it has "
        f"{len(names)}: {shown}"
    )


def _preparation(subject: Subject, size: tuple[int, int]) -> tuple[Callable[[Any], Tensor], str]:
    """What makes pixels (C, H, W) of a Pillow image, and that in words."""
    folder = subject.folder
    if folder is not None and (Path(folder) / "preprocessor_config.json").is_file():
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor.from_pretrained(folder)

        def process(image: Any) -> Tensor:
            pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return pixels

        return process, "by the model's image processor"

    from PIL import Image, ImageOps

    channels = int(getattr(subject.model.config, "num_channels", 3))

    def fit(image: Any) -> Tensor:
        fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
        if channels == 1:
            fitted = fitted.convert("L")
        raw = torch.from_numpy(np.asarray(fitted).copy()).float() / 255
        raw = raw[None] if channels == 1 else raw.permute(2, 0, 1)
        return (raw - _MEAN) / _SPREAD

    height, width = size
    return fit, f"shorter side fitted, middle of {height} x {width}, ({_MEAN}, {_SPREAD})"


def require_classifier(model: Any, images: EvalImages) -> None:
    """Refuses a model that gives no logits over classes, seen from one image."""
    with eval_mode(model), torch.no_grad():
        class_logits(model, images.load([0]))


def class_logits(model: Any, pixels: Tensor) -> Tensor:
    """Logits (B, classes) of a classifier; a model that gives none is refused."""
    device = next(model.parameters()).device
    output = model(pixel_values=pixels.to(device, model.dtype))
    logits = getattr(output, "logits", None)
    if logits is None or logits.dim() != 2 or len(logits) != len(pixels):
        raise InvalidInputError(
            f"{type(model).__name__} gives no logits over classes; an image classifier does"
        )
    return torch.as_tensor(logits)
