"""Measures models by the metrics that are asked for: in a recipe, or one beside another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from modwright.checkpoint import Checkpoint
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.metrics.registry import Metric, Subject, refused, stored
from modwright.recipes.schema import Evaluate, Recipe

__all__ = ["TEACHER", "Evaluation", "evaluate", "evaluation_digest", "measure_all", "subject_of"]
__all__ += ["seen_text_notes", "supported"]

TEACHER = "the baseline"


def subject_of(
    opened: Checkpoint,
    reference: Subject | None = None,
    preparation: Mapping[str, Any] | None = None,
) -> Subject:
    """An opened checkpoint as metrics take it; ``preparation`` is of the images that it reads."""
    folder = opened.source.path
    return Subject(
        opened.model,
        opened.tokenizer,
        opened.source.name,
        reference,
        folder=folder if folder is not None and folder.is_dir() else None,
        preparation=preparation or {},
    )


@contextmanager
def _named(what: str, start: str = "evaluate.") -> Iterator[None]:
    """Says which metric a refusal is about."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{start}{what}: {error}") from error


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Notes how long the block took."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def supported(asked: Evaluate, subject: Subject) -> tuple[list[Metric], list[str]]:
    """The metrics that a model can have, and sentences on those that are left out.

    Raises:
        InvalidInputError: one was asked for by name that the model cannot have.
    """
    found, notes = [], []
    for name, metric in asked.built.items():
        reason = metric.unsupported(subject)
        if reason is None:
            found.append(metric)
        elif asked.is_required(name):
            with _named(name):
                raise refused(reason, name)
        else:
            notes.append(f"{name} is not measured: it {reason}")
    return found, notes


def seen_text_notes(recipe: Recipe) -> list[str]:
    """Sentences on texts that judge the result and that a step of the recipe saw before."""
    seen: set[str] = set()
    chose: set[str] = set()
    for step in recipe.steps:
        if step.built.requires.calibration and step.built.wants_data():
            seen |= _text_names((step.calibration or recipe.calibration).data)
        seen |= _text_names(getattr(step.built, "data", None))
        chose |= _text_names(list(getattr(step.built, "held_out", {}).values()))
    notes = []
    for name, metric in recipe.evaluate.built.items():
        measured = _text_names(getattr(metric, "data", None))
        for texts, how in (
            (seen, "which a step sees, too: it says little of texts that the model has not seen"),
            (chose - seen, "by which a step chooses the state that it keeps"),
        ):
            if both := ", ".join(sorted(measured & texts)):
                notes.append(f"{name} is measured on {both}, {how}")
    return notes


def _text_names(data: Any) -> set[str]:
    """Names and paths of texts in a key ``data``."""
    if isinstance(data, str):
        return {data}
    if isinstance(data, Mapping):
        return _text_names(data.get("text"))
    return set().union(*map(_text_names, data)) if isinstance(data, list | tuple) else set()


def evaluation_digest(
    opened: Checkpoint, asked: Evaluate, preparation: Mapping[str, Any] | None = None
) -> str | None:
    """Digest of all that is measured on; None where nothing is.

    What could not be measured later is refused: a missing text, a task that is unknown, a metric
    that the model cannot have.
    """
    subject, digests = subject_of(opened, preparation=preparation), []
    for metric in supported(asked, subject)[0]:
        with _named(metric.name):
            digests.append(metric.require(subject))
    if any(digests) and preparation:
        digests.append(sha256_of(dict(preparation), dict(opened.model.config.id2label)))
    return "+".join(filter(None, digests)) or None


def measure_all(
    metrics: Sequence[Metric],
    subject: Subject,
    progress: Progress = SILENT,
    log: Callable[[str], None] = lambda message: None,
    start: str = "evaluate.",
) -> tuple[dict[str, Any], dict[str, float]]:
    """What each metric stores of a model, and the seconds of each.

    Metrics that compare are left out where there is nothing to compare with. ``log`` hears of each
    number as soon as it is known; messages begin with ``start`` and the name of the metric.
    """
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for metric in metrics:
        if metric.compares and subject.reference is None:
            continue
        with timed(metric.name, seconds), _named(metric.name, start):
            result = metric.measure(subject, progress)
        found[metric.name] = stored(result)
        if metric.is_quality:
            log(next(iter(metric.lines(found[metric.name])), metric.title))
    return found, seconds


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        model: as it was opened.
        measured: what each metric stores, by its name.
        against: the same of the model that it is compared with.
        left_out: metrics that were asked for where they can be had, and why they cannot.
    """

    model: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    against: Evaluation | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite stay as they are."""
        against = None if self.against is None else self.against.to_dict()
        return {"model": self.model, **self.measured, "against": against}


def evaluate(
    opened: Checkpoint,
    metrics: Sequence[Metric],
    *,
    against: Checkpoint | None = None,
    optional: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Evaluation:
    """A model measured by metrics; with another model beside it also by those that compare.

    The other model, the original, is measured first, by the same recipes in the same run. What
    cannot be measured is refused before the first forward pass of any size. The ``optional`` ones
    are left out where a model cannot have them and there is something else to measure.

    Raises:
        InvalidInputError: a metric that a model cannot have, two models that cannot be compared.

    Example:
        ``evaluate(open("out/demo"), [make_metric("perplexity")], against=open("smollm2-135m"))``
    """
    other = None if against is None else subject_of(against)
    subject = subject_of(opened, other)
    subjects = [subject] if other is None else [other, subject]
    reasons: dict[str, str] = {}
    for metric in metrics:
        if metric.compares and other is None:
            raise InvalidInputError(f"{metric.name} needs a model to compare with")
        for one in subjects:
            if (reason := metric.unsupported(one)) is not None:
                reasons.setdefault(metric.name, reason)
    kept = [one for one in metrics if one.name not in reasons or one.name not in optional]
    for metric in kept or metrics:
        if metric.name in reasons:
            raise InvalidInputError(f"{metric.name} {reasons[metric.name]}")
    for metric in kept:
        with _named(metric.name, ""):
            metric.require(subject)
    first = None
    if other is not None:
        first = Evaluation(other.name, measure_all(kept, other, progress, start="")[0])
        subject = replace(subject, reference=replace(other, found=first.measured))
    found, _ = measure_all(kept, subject, progress, start="")
    return Evaluation(subject.name, found, first, reasons)
