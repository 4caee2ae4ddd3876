"""Cross-entropy with classes, and the mixings that image classifiers are trained by.

Axes: B rows of a batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of, logits_of
from modwright.training.objectives.base import Losses, Objective, objective

__all__ = ["CrossEntropy", "soft_cross_entropy"]


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


@objective("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy with classes, with the mixings that image classifiers are trained by.

    Labels are classes, one for a row or one for each of its positions (-100: not asked for), or
    shares of the classes.

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
        inputs, labels = inputs_of(batch), _labels_of(batch)
        mixings = [mix for mix in _MIX if getattr(self, mix) > 0]
        if not model.training or not mixings:
            return self.of_logits(logits_of(model(**inputs), model), labels), {}
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dim() != 4:
            raise InvalidInputError(
                f"{' and '.join(mixings)} mix images, and the batch has {', '.join(batch)}"
            )
        chosen = mixings[int(torch.randint(len(mixings), ()))]
        alpha = float(getattr(self, chosen))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(labels), device=labels.device)
        pixels, share = _MIX[chosen](pixels, pixels[other], share)
        logits = logits_of(model(**{**inputs, "pixel_values": pixels}), model)
        first, second = self.of_logits(logits, labels), self.of_logits(logits, labels[other])
        return share * first + (1 - share) * second, {}

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (..., K) with classes (...), or with shares of them (..., K)."""
        flat = logits.flatten(0, -2)
        wanted = labels.flatten(0, -2) if labels.is_floating_point() else labels.flatten()
        if len(wanted) != len(flat):
            raise InvalidInputError(
                f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
                f"{tuple(logits.shape)}"
            )
        return F.cross_entropy(flat, wanted, label_smoothing=self.label_smoothing)


def _labels_of(batch: Batch) -> Tensor:
    if "labels" not in batch:
        raise InvalidInputError(f"the batch has no labels; it has {', '.join(batch)}")
    return batch["labels"]


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
