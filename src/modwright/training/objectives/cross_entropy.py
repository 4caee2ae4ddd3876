"""Objectives: what is made small. Each is called with a model and a batch, and gives a loss.

Axes: B images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.core.modes import set_eval

__all__ = ["CrossEntropy", "Distillation", "L1Loss", "Objective", "soft_cross_entropy"]


Batch = Mapping[str, Tensor]
Losses = tuple[Tensor, dict[str, Tensor]]


class Objective(Protocol):
    """A loss of a model on a batch, and named numbers to log beside it."""

    def __call__(self, model: nn.Module, batch: Batch) -> Losses: ...


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with probabilities given as logits: (B, K), (B, K) -> a number.

    Both are divided by the temperature first (arXiv 2111.05297, 1503.02531).

    Example:
        >>> same = torch.tensor([[20.0, 0.0]])
        >>> soft_cross_entropy(same, same).round(decimals=3)
        tensor(0.)
    """
    wanted = (targets / temperature).softmax(-1)
    return -(wanted * (logits / temperature).log_softmax(-1)).sum(-1).mean()


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with classes, with the mixings that image classifiers are trained by.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        mixup: parameter of the Beta distribution that two images are averaged by
            (arXiv 1710.09412); 0 mixes none.
        cutmix: parameter of the Beta distribution that a rectangle of another image is sized by
            (arXiv 1905.04899); 0 cuts none. With both, each batch gets one of them by chance.

    Raises:
        InvalidInputError: a number out of its range.

    Example:
        >>> CrossEntropy(label_smoothing=0.1, mixup=0.8, cutmix=1.0).cutmix
        1.0
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InvalidInputError(f"label_smoothing lies in [0, 1), not {self.label_smoothing}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"{name} is at least 0, not {getattr(self, name)}")

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        pixels, labels = batch["pixel_values"], batch["labels"]
        mixings = [mix for mix in ("mixup", "cutmix") if getattr(self, mix) > 0]
        if not model.training or not mixings:
            return self._loss(model(pixel_values=pixels).logits, labels), {}
        chosen = mixings[int(torch.randint(len(mixings), ()))]
        alpha = float(getattr(self, chosen))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(labels), device=labels.device)
        pixels, share = _MIX[chosen](pixels, pixels[other], share)
        logits = model(pixel_values=pixels).logits
        first, second = self._loss(logits, labels), self._loss(logits, labels[other])
        return share * first + (1 - share) * second, {}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def _mixup(pixels: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    return share * pixels + (1 - share) * others, share


def _cutmix(pixels: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """A rectangle of the others that covers 1 - share of the image, cut at its border."""
    height, width = pixels.shape[2:]
    side = (1 - share) ** 0.5
    rows, columns = (_span(length, side) for length in (height, width))
    mixed = pixels.clone()
    mixed[:, :, rows, columns] = others[:, :, rows, columns]
    cut = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - cut / (height * width)


def _span(length: int, share: float) -> slice:
    """A stretch of an axis around a place drawn by chance."""
    start, size = int(torch.randint(length, ())), round(share * length)
    start -= size // 2
    return slice(max(start, 0), min(start + size, length))


_MIX = {"mixup": _mixup, "cutmix": _cutmix}


@dataclass(frozen=True)
class Distillation:
    """A teacher's answers as targets, beside the classes.

    Attributes:
        teacher: its logits have the classes of the model's. It stays as it is: a student that was
            made of it gets tensors of its own before it is trained.
        weight: of the teacher's part; the rest is cross-entropy with the classes.
        temperature: of soft targets.
        hard: the teacher's best class is the target, instead of its probabilities
            (arXiv 2012.12877).

    Raises:
        InvalidInputError: a number out of its range.
    """

    teacher: Any
    weight: float = 0.5
    temperature: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InvalidInputError(f"weight lies between 0 and 1, not {self.weight}")
        if self.temperature <= 0:
            raise InvalidInputError(f"temperature is above 0, not {self.temperature}")
        set_eval(self.teacher)

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        pixels = batch["pixel_values"]
        with torch.no_grad():
            answers = self.teacher(pixel_values=pixels).logits
        logits = model(pixel_values=pixels).logits
        of_classes = F.cross_entropy(logits, batch["labels"])
        of_teacher = (
            F.cross_entropy(logits, answers.argmax(-1))
            if self.hard
            else soft_cross_entropy(logits, answers, self.temperature) * self.temperature**2
        )
        loss = (1 - self.weight) * of_classes + self.weight * of_teacher
        return loss, {"classes": of_classes.detach(), "teacher": of_teacher.detach()}


@dataclass(frozen=True)
class L1Loss:
    """Mean absolute error of the images that a model gives, as super-resolution is trained by.

    A batch's labels are the images that ``model(pixel_values=...).reconstruction`` should be.

    Example:
        >>> from types import SimpleNamespace
        >>> batch = {"pixel_values": torch.ones(1, 3, 4, 4), "labels": torch.ones(1, 3, 4, 4)}
        >>> L1Loss()(lambda pixel_values: SimpleNamespace(reconstruction=2 * pixel_values), batch)
        (tensor(1.), {})
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        found = model(pixel_values=batch["pixel_values"]).reconstruction
        return F.l1_loss(found, batch["labels"]), {}
