"""The metric of how far a result is from the baseline, with its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modwright.core.errors import InvalidInputError
from modwright.core.formatting import (
    count_text,
    nats_text,
    percent_text,
    score_text,
    share_text,
)
from modwright.core.progress import SILENT, Progress
from modwright.metrics.column import Column, StageLike, differing
from modwright.metrics.divergence import (
    Divergence,
    divergence,
    image_divergence,
    require_comparable,
)
from modwright.metrics.images import EvalImages, eval_images, require_classifier
from modwright.metrics.positions import eval_positions_of
from modwright.metrics.registry import Subject, metric
from modwright.metrics.vocabulary import require_same_tokenizer
from modwright.metrics.windows import AtLeastOne, WindowOptions

__all__ = ["DivergenceMetric"]

_IMAGES = 32  # at once, at least

_SHARE: dict[str, Any] = {"change": percent_text, "lower_is_better": False, "headline": "against"}


@metric(
    "divergence",
    unit="nats",
    direction="lower",
    title="Divergence from the baseline",
    compares=True,
    must_be_finite=("kl", "cosine"),
    defaults_from="perplexity",
    old_key="agreement",
    old_field="agreement",
    order=20,
    columns=(
        Column(
            "divergence",
            "kl",
            "KL, nats/token",
            nats_text,
            by_window="kl",
            meaning="Mean KL divergence of the result's distribution over a token, or over the "
            "classes of an image, from that of the baseline, which is KL(baseline || result); 0 is "
            "the same distribution.",
        ),
        Column(
            "divergence",
            "top1",
            "Top-1 agreement",
            share_text,
            by_window="top1",
            meaning="Share of the tokens, or images, at which the result puts first what the "
            "baseline puts first.",
            **_SHARE,
        ),
        Column(
            "divergence",
            "cosine",
            "Cosine",
            score_text,
            by_window="cosine",
            meaning="Mean cosine between the last hidden state of a token and that of the "
            "baseline; 1 is the same direction.",
            **_SHARE,
        ),
    ),
)
@dataclass(frozen=True)
class DivergenceMetric(WindowOptions):
    """How far the predictions are from the baseline's, on a text or on images.

    Attributes:
        images: for image classifiers, in place of a text: digits, or a folder with one folder per
            class.
        image_size: side of these images, in pixels; null takes the model's own.
        limit: how many of these images, spread over all; null takes all.
    """

    images: str | None = None
    image_size: AtLeastOne | None = None
    limit: AtLeastOne | None = None

    def unsupported(self, subject: Subject) -> str | None:
        if subject.reads_images:
            if self.images is None:
                return (
                    f"is measured on images where a model reads them, as {subject.name} does; "
                    "say which with `images`"
                )
            if not subject.classifies_images:
                return f"needs an image classifier, and {subject.name} is none"
            return None
        if subject.tokenizer is None:
            return f"is measured on text, and {subject.name} has no tokenizer"
        return None

    def digest(self, subject: Subject) -> str:
        model, tokenizer, reference = subject.model, subject.tokenizer, subject.reference
        if subject.reads_images:
            images = self._images(subject)
            require_classifier(model, images)
            return images.digest
        if reference is not None:
            names = (reference.name, subject.name)
            require_same_tokenizer(reference.tokenizer, tokenizer, names, self.text_windows().data)
        other = model if reference is None else reference.model
        kind = require_comparable(other, model, tokenizer)
        return str(eval_positions_of(kind, other, tokenizer, self.text_windows())[1]["sha256"])

    def measure(self, subject: Subject, progress: Progress = SILENT) -> Divergence:
        reference = subject.reference
        if reference is None:
            raise InvalidInputError(f"{self.name} needs a model to compare with")
        if subject.reads_images:
            images = self._images(subject)
            found = image_divergence(reference.model, subject.model, images, progress)
        else:
            found = divergence(
                reference.model, subject.model, subject.tokenizer, self.text_windows(), progress
            )
        return replace(found, recipe={**found.recipe, "teacher": reference.name})

    def _images(self, subject: Subject) -> EvalImages:
        batch_size = max(_IMAGES, self.batch_size)
        return eval_images(subject, str(self.images), self.image_size, self.limit, batch_size)

    @classmethod
    def columns_of(cls, stages: Sequence[StageLike]) -> list[Column]:
        kl, *others = cls.columns
        of_images = any(_unit(kl.stored(stage)) == "image" for stage in stages)
        return [replace(kl, label="KL, nats/image") if of_images else kl, *others]

    @classmethod
    def described(cls, values: Mapping[str, Any]) -> str:
        data = (values.get("recipe") or {}).get("data")
        what = "images" if _unit(values) == "image" else "one text"
        return f"agreement with the base model on {what}" + (f" ({data})" if data else "")

    @classmethod
    def sentences(cls, before: StageLike, after: StageLike) -> Iterator[str]:
        yield from _said(after)

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        column = cls.columns[0]
        one, two = column.of(before), column.of(after)
        sure = column.interval(before, after)
        if one is None or two is None or sure is None or differing(before, after, cls.name):
            return
        line = (
            f"{name}: KL from the baseline went from {nats_text(one)} to {nats_text(two)} nats, "
            f"over {sure.windows} windows"
        )
        noise = (
            ": within noise, no difference is seen" if column.is_within_noise(before, after) else ""
        )
        yield f"{line}{noise}."

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        told, unit = [], _unit(values)
        if values.get("kl") is not None:
            told.append(f"KL {nats_text(values['kl'])} nats per {unit}{_ends(values)}")
        if values.get("top1") is not None:
            told.append(f"top-1 {share_text(values['top1'])}")
        if values.get("cosine") is not None:
            told.append(f"cosine {score_text(values['cosine'])}{_ends(values)}")
        shown = ", ".join(told) if values.get("finite", True) else "not finite"
        yield f"divergence over {values.get('tokens', 0):,} {unit}s: {shown}"


def _unit(values: Mapping[str, Any]) -> str:
    """What the numbers are means over."""
    said = str((values.get("recipe") or {}).get("unit"))
    return "image" if said.endswith("image") else "token"


def _ends(values: Mapping[str, Any]) -> str:
    """The interval of the mean, where it is known."""
    sure = values.get("interval")
    if not sure or values.get("kl") is None:
        return ""
    return f" ({nats_text(sure['low'])}–{nats_text(sure['high'])} with 95 % confidence)"


def _said(after: StageLike) -> Iterator[str]:
    near = after.measured.get("divergence")
    if near is None:
        return
    said = f"at {count_text(near.get('tokens') or 0)} tokens of text"
    if _unit(near) == "image":
        said = f"of {count_text(near.get('tokens') or 0)} images"
    if not near["finite"]:
        yield (
            f"How far the result is from the baseline cannot be said: {said} an output "
            "is not finite, or gives no probability where the other gives some."
        )
        return
    if near.get("cosine") is not None:
        yield (
            f"The result's last hidden states and those of the baseline have a mean cosine "
            f"of {score_text(near['cosine'])} {said}."
        )
    if near.get("kl") is not None:
        line = (
            f"The result's predictions are {nats_text(near['kl'])} nats from those of the baseline "
            f"(mean KL {said}{_interval_words(near)})"
        )
        if near.get("top1") is not None:
            line += f", and both put the same token first at {share_text(near['top1'])} of them"
        yield f"{line}."


def _interval_words(near: Mapping[str, Any]) -> str:
    sure = near.get("interval")
    if not sure:
        return ""
    return f"; {nats_text(sure['low'])}–{nats_text(sure['high'])} over {sure['windows']} windows"
