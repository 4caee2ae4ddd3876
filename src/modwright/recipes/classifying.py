"""Labeled images that a recipe learns from, and the classifier that learns: do they fit?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modwright.checkpoint import Checkpoint
from modwright.core.errors import InvalidInputError, ModwrightError, first_line
from modwright.core.modes import eval_mode
from modwright.core.reading import read_json
from modwright.data import Data
from modwright.recipes.schema import METHOD, Recipe
from modwright.training.fitting import name_classes

__all__ = ["PROCESSOR", "LearnedImages", "learned_images", "other_names", "require_images"]

PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class LearnedImages:
    """How images are prepared where the model has no image processor of its own.

    Attributes:
        preparation: options of the kind "images".
        files: what the result is saved with beside its weights.
    """

    preparation: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def learned_images(recipe: Recipe, opened: Checkpoint, log: Callable[[str], None]) -> LearnedImages:
    """Gives the model's outputs the names of the classes, before anything is measured.

    Args:
        recipe: whose steps learn.
        opened: the model; its config is changed in place.
        log: is told that the classes had other names.

    Raises:
        InvalidInputError: the model does not take the images or has fewer classes, or they are
            prepared otherwise than its image processor or another step does.
    """
    found = LearnedImages()
    for step in recipe.steps:
        data = None if step.kind == METHOD else step.built.images(opened)
        if data is None or not data.labels:
            continue
        require_images(opened.model, data, "model")
        if old := other_names(opened.model, data):
            log(f"classes were {old} and are now those of the images: {', '.join(data.labels)}")
        name_classes(opened.model.config, data.labels)
        own = None if opened.source.path is None else opened.source.path / PROCESSOR
        if own is not None and own.is_file():
            _require_same_numbers(data, own)
            continue
        told = json.dumps(data.processor, indent=2) + "\n"
        files = {PROCESSOR: told} if data.processor else {}
        images = LearnedImages(_preparation(data), files)
        if found.preparation and images != found:
            raise InvalidInputError(
                f"images of {data.name} are not prepared as in the step before; the model reads "
                "them one way"
            )
        found = images
    return found


def _preparation(data: Data) -> dict[str, Any]:
    """What is said of images to learn from, so that they are measured alike."""
    options = data.options[0] if isinstance(data.options, list) else data.options
    named = ("crop_pct", "mean", "std")
    found = {key: options[key] for key in named if options.get(key) is not None}
    if data.processor:
        found |= {key: list(data.processor[f"image_{key}"]) for key in ("mean", "std")}
    return found


def _require_same_numbers(data: Data, file: Path) -> None:
    """Images are normalized as the model's image processor does it."""
    own = read_json(file)
    if not data.processor or not isinstance(own, dict) or own.get("do_normalize") is False:
        return
    for key in ("mean", "std"):
        ours, theirs = data.processor[f"image_{key}"], own.get(f"image_{key}")
        if theirs is not None and not np.allclose(ours, theirs, atol=1e-6):
            shown = theirs[0] if isinstance(theirs, list) and len(set(theirs)) == 1 else theirs
            raise InvalidInputError(
                f"images of {data.name} are normalized with {key} {ours[0]:g}, and the model's "
                f"image processor takes {shown}; say {key}: {shown} in data"
            )


@torch.no_grad()
def require_images(model: Any, images: Data, what: str) -> None:
    """One image through a model, so that another size or another task is seen before work."""
    try:
        with eval_mode(model):
            pixels = images.train[0]["pixel_values"][None]
            found = model(pixel_values=pixels.to(model.device, model.dtype))
    except (ModwrightError, ValueError, TypeError, RuntimeError) as error:
        info = first_line(error)
        raise InvalidInputError(f"{what}: does not take images of {images.name}: {info}") from None
    if getattr(found, "logits", None) is None or found.logits.dim() != 2:
        raise InvalidInputError(f"{what}: {type(model).__name__} is no classifier of images")
    known, shown = found.logits.shape[1], len(images.labels)
    if known < shown:
        more = "; num_classes gives it others" if what == "model" else ""
        raise InvalidInputError(f"{what}: has {known} classes, the images {shown}{more}")


def other_names(model: Any, images: Data) -> str:
    """Names that a model was given for its first classes, where they are not the images'."""
    names = [str(model.config.id2label.get(i)) for i in range(len(images.labels))]
    own = names not in ([f"LABEL_{i}" for i in range(len(names))], list(images.labels))
    return ", ".join(names) if own else ""
