"""Mean absolute error, as super-resolution is trained by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from modwright.training.batches import Batch, inputs_of
from modwright.training.objectives.base import Losses, Objective, objective

__all__ = ["L1Loss"]


@objective("l1")
@dataclass(frozen=True)
class L1Loss(Objective):
    """Mean absolute error of the images that a model gives, as super-resolution is trained by.

    A batch's labels are the images that ``model(pixel_values=...).reconstruction`` should be.

    Example:
        >>> from types import SimpleNamespace
        >>> batch = {"pixel_values": torch.ones(1, 3, 4, 4), "labels": torch.ones(1, 3, 4, 4)}
        >>> L1Loss()(lambda pixel_values: SimpleNamespace(reconstruction=2 * pixel_values), batch)
        (tensor(1.), {})
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        found = model(**inputs_of(batch)).reconstruction
        return F.l1_loss(found, batch["labels"]), {}
