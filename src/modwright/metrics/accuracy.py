"""Top-1 and top-5 accuracy of an image classifier."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from modwright.core.formatting import interval_text, share_text
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.metrics.column import DifferenceColumn, points_text
from modwright.metrics.forward import dtype_of
from modwright.metrics.images import EvalImages, class_logits, eval_images, require_classifier
from modwright.metrics.interval import mean_interval
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.windows import AtLeastOne

__all__ = ["Accuracy", "AccuracyMetric", "image_accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """Shares of images whose class a model puts first, or among its first five.

    Attributes:
        top1: share of images whose class has the largest logit; 0 where logits are not numbers.
        top5: share of images whose class is among the five largest; None with fewer than six
            classes.
        images: how many there were.
        recipe: which images, how they were prepared, dtype.
        seconds: of the forward passes.
        interval: where top-1 lies with 95 % confidence, from groups of images.
        by_window: right ones of each group of images, and ``counts``.
        finite: whether all logits were numbers.
    """

    top1: float
    top5: float | None
    images: int
    recipe: dict[str, Any]
    seconds: float
    interval: dict[str, Any] | None
    by_window: dict[str, list[float]]
    finite: bool


@torch.no_grad()
def image_accuracy(model: Any, images: EvalImages, progress: Progress = SILENT) -> Accuracy:
    """Measure a classifier on labeled images, in evaluation mode.

    Raises:
        InvalidInputError: the model gives no logits over classes.
    """
    rows: list[tuple[dict[str, float], int]] = []
    finite, most = True, 0
    begin = time.perf_counter()
    with eval_mode(model), progress.phase("accuracy", len(images)) as task:
        for pixels, labels in images.batches():
            logits = class_logits(model, pixels).float().cpu()
            whole = logits.isfinite().all(-1)
            finite, most = finite and bool(whole.all()), logits.shape[-1]
            first = logits.topk(min(5, most), -1).indices
            hits = (first == labels[:, None]) & whole[:, None]
            rows += [({"top1": float(hit[0]), "top5": float(hit.any())}, 1) for hit in hits]
            task.advance(len(pixels))
    seconds = time.perf_counter() - begin
    grouped = images.grouped(rows)
    counts = [float(count) for _, count in grouped]
    sums = {name: [values[name] for values, _ in grouped] for name in ("top1", "top5")}
    if most < 6:
        del sums["top5"]
    shares = {name: sum(values) / sum(counts) for name, values in sums.items()}
    sure = mean_interval(sums["top1"], counts)
    return Accuracy(
        top1=shares["top1"],
        top5=shares.get("top5"),
        images=len(images),
        recipe={**images.recipe, "dtype": dtype_of(model)},
        seconds=seconds,
        interval=None if sure is None else asdict(sure),
        by_window={**sums, "counts": counts},
        finite=finite,
    )


def _column(name: str, label: str, meaning: str, headline: Any) -> DifferenceColumn:
    return DifferenceColumn(
        "accuracy",
        f"{name}_accuracy",
        label,
        share_text,
        points_text,
        lower_is_better=False,
        meaning=meaning,
        key=name,
        headline=headline,
        by_window=name,
    )


@metric(
    "accuracy",
    unit="",
    direction="higher",
    must_be_finite=("top1",),
    order=30,
    columns=(
        _column(
            "top1",
            "Top-1 accuracy",
            "Share of the images whose class the model puts first; its change is in points.",
            "measured",
        ),
        _column(
            "top5",
            "Top-5 accuracy",
            "Share of the images whose class is among the first five; its change is in points.",
            "",
        ),
    ),
)
@dataclass(frozen=True)
class AccuracyMetric(Metric):
    """Top-1 and top-5 accuracy of an image classifier on labeled images.

    Attributes:
        images: digits, or a folder with one folder per class; where it has splits, the one that is
            held out is measured.
        image_size: side of the images, in pixels; null takes the model's own.
        limit: how many images, spread over all; null takes all.
        batch_size: images at once.
    """

    images: str
    image_size: AtLeastOne | None = None
    limit: AtLeastOne | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32

    def unsupported(self, subject: Subject) -> str | None:
        if not subject.reads_images:
            return f"needs an image classifier, and {subject.name} reads no images"
        if not subject.classifies_images:
            return f"needs an image classifier, and {subject.name} is none"
        return None

    def digest(self, subject: Subject) -> str:
        images = self._images(subject)
        require_classifier(subject.model, images)
        return images.digest

    def measure(self, subject: Subject, progress: Progress = SILENT) -> Accuracy:
        return image_accuracy(subject.model, self._images(subject), progress)

    def _images(self, subject: Subject) -> EvalImages:
        return eval_images(subject, self.images, self.image_size, self.limit, self.batch_size)

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        line = f"top-1 {share_text(values.get('top1') or 0.0)}"
        sure = values.get("interval")
        if sure:
            ends = interval_text(100 * sure["low"], 100 * sure["high"])
            line += f" ({ends} % with 95 % confidence)"
        if values.get("top5") is not None:
            line += f", top-5 {share_text(values['top5'])}"
        if not math.isfinite(values.get("top1") or 0.0) or not values.get("finite", True):
            line += "; some outputs are not finite"
        yield f"{line} of {values.get('images', 0):,} images"
