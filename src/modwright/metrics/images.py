"""Labeled images that classifiers are measured on, decoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.data import Data, make_data
from modwright.data.image_files import read_image
from modwright.data.image_rows import ImageFileList, ImagePreparation, ImageRows
from modwright.data.registry import datasets_of
from modwright.metrics.registry import Subject

__all__ = ["EvalImages", "class_logits", "eval_images", "image_size_of", "predict_classes"]
__all__ += ["processor_of", "require_classifier"]

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


def eval_images(
    subject: Subject,
    images: str,
    image_size: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
) -> EvalImages:
    """Images by name or of a folder, with the labels that the model knows.

    The split that is held out is taken, and all images of a folder without splits. A model's own
    image processor prepares files, where it has one.

    Raises:
        CheckpointError: there is no such folder.
        InvalidInputError: a class is none of the model's, or too few images.
    """
    channels = int(getattr(subject.model.config, "num_channels", 3))
    asked = {"images": images, **subject.preparation}
    asked["image_size"] = image_size or image_size_of(subject.model.config)
    if images not in datasets_of("images"):
        asked["held_out"] = 1.0
    data = make_data({**asked, "channels": channels})
    rows: Any = data.test
    count = len(rows)
    chosen = [at * count // limit for at in range(limit)] if limit and limit < count else None
    positions = list(range(count)) if chosen is None else chosen
    known, how = _labels(data, subject)
    processor = processor_of(subject.folder) if isinstance(rows.source, ImageFileList) else None
    return EvalImages(
        torch.tensor([known[int(rows.source.labels[at])] for at in positions]),
        lambda batch: torch.stack([_pixels(rows, positions[at], processor) for at in batch]),
        batch_size,
        {
            "data": images,
            "images": len(positions),
            "classes": how,
            "prepared": repr(rows.preparation) if processor is None else "by the model's processor",
            "batch_size": batch_size,
            "sha256": sha256_of(rows.source.digest(), positions),
        },
    )


def _pixels(rows: ImageRows, index: int, processor: Any) -> Tensor:
    if processor is None:
        return rows[index]["pixel_values"]
    made = processor(images=rows.source.read(index), return_tensors="pt")
    return torch.as_tensor(made["pixel_values"][0])


def image_size_of(config: Any) -> int:
    """Pixels of a side of the images that a model reads; one that reads others is refused."""
    size: Any = getattr(config, "image_size", None) or 224
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise InvalidInputError(f"images are made square, and the model reads {tuple(size)}")
    return int(sides.pop())


def processor_of(folder: Any) -> Any:
    """The image processor that is saved with a model; None where there is none."""
    if folder is None or not (Path(folder) / "preprocessor_config.json").is_file():
        return None
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)


def _labels(data: Data, subject: Subject) -> tuple[list[int], str]:
    """For each class of the images the model's index of it, and how that was found.

    Raises:
        InvalidInputError: the model has no class of that name.
    """
    config, classes = subject.model.config, data.labels
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


@torch.no_grad()
def predict_classes(opened: Any, image: str | Path, top: int = 5) -> dict[str, float]:
    """The likeliest classes of an image file with their probabilities, as a classifier sees it.

    Args:
        opened: a checkpoint of a classifier; its image processor prepares the image, where it has
            one.
        image: path of the file.
        top: how many classes.

    Raises:
        CheckpointError: there is no such file, or none that can be read.
        InvalidInputError: the model is no image classifier, or ``top`` is below 1.
    """
    if top < 1:
        raise InvalidInputError(f"top is 1 or more, not {top}")
    subject = Subject(opened.model, name=opened.name)
    if not subject.classifies_images:
        raise InvalidInputError(f"{opened.name} is no image classifier")
    raw, config = read_image(image), opened.model.config
    processor = processor_of(opened.source.path)
    if processor is None:
        channels = int(getattr(config, "num_channels", 3))
        pixels = ImagePreparation(image_size_of(config), channels).pixels(raw)
    else:
        pixels = torch.as_tensor(processor(images=raw, return_tensors="pt")["pixel_values"][0])
    with eval_mode(opened.model):
        shares = class_logits(opened.model, pixels[None]).float().softmax(-1)[0]
    best = shares.topk(min(top, len(shares)))
    return {
        str(config.id2label.get(index, index)): share
        for share, index in zip(best.values.tolist(), best.indices.tolist())
    }
