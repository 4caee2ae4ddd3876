"""The registry of metrics: what a model is measured by, with all that pages and commands say of it.

A metric is a frozen dataclass of options that can measure, and registers where it is defined.
Recipes (``evaluate:``), ``modwright eval``, reports, model cards and the tables of the docs take
name, options, unit, direction and rendering from here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from modwright.core.errors import InvalidInputError
from modwright.core.formatting import difference_text, score_text
from modwright.core.options import make_options
from modwright.core.progress import SILENT, Progress
from modwright.core.registry import Registry
from modwright.metrics.column import Column, StageLike, differing

__all__ = ["METRICS", "Metric", "Result", "Subject", "in_order", "make_metric", "metric"]
__all__ += ["metric_names", "metric_type", "old_fields", "old_keys", "refused", "stored"]

METRICS: Registry[type[Metric]] = Registry("metric", "modwright.metrics")

M = TypeVar("M", bound="type[Metric]")


@dataclass(frozen=True)
class Subject:
    """A model that is measured, with what belongs to it.

    Attributes:
        model: in transformers' terms.
        tokenizer: the model's own; None where it has none.
        name: what messages call it.
        reference: the model that it is compared with; None for that one itself.
        found: what was measured of it before, by metric, as reports store it.
        folder: the checkpoint's directory, where it has one.
        preparation: of the images that it reads, as options of the kind "images", where no image
            processor is saved with it.
    """

    model: Any
    tokenizer: Any = None
    name: str = "the model"
    reference: Subject | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    folder: Any = None
    preparation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_images(self) -> bool:
        """Whether the model's input is an image."""
        return getattr(self.model, "main_input_name", "") == "pixel_values"

    @property
    def classifies_images(self) -> bool:
        """Whether it reads images and has names of classes; the head is seen when it runs."""
        config = getattr(self.model, "config", None)
        named = bool(getattr(config, "id2label", None))
        return self.reads_images and named and not hasattr(config, "upscale")

    @property
    def writes_text(self) -> bool:
        """Whether the model can go on with a text."""
        return self.tokenizer is not None and bool(
            getattr(self.model, "can_generate", lambda: False)()
        )


@dataclass(frozen=True)
class Result:
    """What a metric of one number measured; others have a frozen dataclass of their own.

    Attributes:
        value: the number; one that is not finite is said to be none.
        recipe: plain values that say how it was measured. Two numbers are compared where theirs
            are equal.
    """

    value: float
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether it is an ordinary number."""
        return math.isfinite(self.value)


class Metric:
    """Base of metrics: a frozen dataclass of options, made by :func:`make_metric`.

    One with a single number defines :meth:`measure` and nothing else; its column, its sentences and
    its place in tables follow from what it is registered with.

    Attributes:
        name, unit, direction, title: as :func:`metric` takes them.
        columns: of the before/after table.
        rules: words of its sentences, and what they mean.
        must_be_finite: keys of the numbers that must be finite for the whole to be.
        by_default: recipes measure it unless they say otherwise, where the model can have it.
        compares: it is measured beside a model to compare with, and not on the baseline.
        is_quality: it says how good a model is; else its columns stand behind the counted costs.
        of_text: only a model that writes text can have it.
        defaults_from: the metric whose options it takes where its own are not said; one that is
            measured by default is then measured where that one is.
        own_options: options that it does not take from there.
        old_key, old_field: what recipes and reports of older versions call it.
        order: among the others; the smallest is first.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    direction: ClassVar[Literal["lower", "higher"] | None] = None
    title: ClassVar[str] = ""
    columns: ClassVar[tuple[Column, ...]] = ()
    rules: ClassVar[tuple[tuple[str, str], ...]] = ()
    must_be_finite: ClassVar[tuple[str, ...]] = ("value",)
    by_default: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    is_quality: ClassVar[bool] = True
    of_text: ClassVar[bool] = False
    defaults_from: ClassVar[str] = ""
    own_options: ClassVar[tuple[str, ...]] = ()
    old_key: ClassVar[str] = ""
    old_field: ClassVar[str] = ""
    order: ClassVar[int] = 50

    def unsupported(self, subject: Subject) -> str | None:
        """Why a model cannot have it, in a few words after "it"; None where it can."""
        return None

    def digest(self, subject: Subject) -> str:
        """Of what it is measured on; what could not be measured later is refused.

        Raises:
            InvalidInputError: the model, the data or the options do not go together.
        """
        return ""

    def require(self, subject: Subject) -> str:
        """The digest, of a model that can have it; one that cannot is refused."""
        if (reason := self.unsupported(subject)) is not None:
            raise refused(reason, self.name)
        return self.digest(subject)

    def measure(self, subject: Subject, progress: Progress = SILENT) -> Any:
        """The numbers, in a frozen dataclass with a ``recipe``, as :class:`Result` is one."""
        raise NotImplementedError

    def memory_estimate(self, anatomy: Any) -> int:
        """Most bytes that it needs beside the weights."""
        return 0

    @classmethod
    def columns_of(cls, stages: Sequence[StageLike]) -> list[Column]:
        """Its columns in a table of these stages."""
        return list(cls.columns)

    @classmethod
    def problem_of(cls, values: Mapping[str, Any]) -> str | None:
        """What is wrong with stored values, beside their numbers: where, and what must be there."""
        return None

    @classmethod
    def of_old(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What reports of formats 1 and 2 hold of it, as it is stored now."""
        return dict(values)

    @classmethod
    def described(cls, values: Mapping[str, Any]) -> str:
        """What was measured on what, in a few words of a model card."""
        data = (values.get("recipe") or {}).get("data")
        return cls.title.lower() + (f" ({data})" if data else "")

    @classmethod
    def sentences(cls, before: StageLike, after: StageLike) -> Iterator[str]:
        """What became of its numbers from the baseline to the result."""
        yield from _sentences(cls, before, after, "")

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        """The same of one step of several, which is called by its ``name``."""
        yield from _sentences(cls, before, after, f"{name}: ")

    @classmethod
    def stage_sentences(cls, stage: StageLike) -> Iterator[str]:
        """What is to be said of a stage alone."""
        return iter(())

    @classmethod
    def worsened(cls, before: StageLike, after: StageLike) -> str | None:
        """That its number became worse by more than nothing, in words; else None."""
        return None

    @classmethod
    def table(cls, stages: Sequence[StageLike]) -> Any | None:
        """A table of its own beside the columns: ``note``, ``heads`` and ``rows``."""
        return None

    @classmethod
    def sample_of(cls, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A text to show: ``prompt``, ``text``, ``repetition`` and ``settings``."""
        return None

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        """What was measured, for a terminal."""
        said = [f"{one.label} {one.text(values[key])}" for key, one in _known(cls, values)]
        broken = not values.get("finite", True)
        yield f"{', '.join(said)}" if said and not broken else f"{cls.title}: not finite"


def metric(
    name: str,
    *,
    unit: str,
    direction: Literal["lower", "higher"] | None,
    title: str = "",
    **facts: Any,
) -> Callable[[M], M]:
    """Decorator that registers a metric, a subclass of :class:`Metric` and a frozen dataclass.

    Args:
        name: what recipes and commands call it; reports store it under this name.
        unit: of its number, as headings have it; "" for a pure number.
        direction: which way is better; None where nobody knows.
        title: for people, such as "Top-1 accuracy"; the name with spaces, unless it is said.
        facts: further attributes of :class:`Metric`: ``columns`` of a metric of several numbers,
            ``by_default`` of one that recipes measure unless they say otherwise, ``compares`` of
            one that needs a model to compare with, ``order`` among the others, and so on.

    Raises:
        ValueError: it is no frozen dataclass, or a fact is not known.
        InvalidInputError: the name is taken.

    Example:
        >>> from modwright.core.registry import registries_restored
        >>> with registries_restored():
        ...     @metric("parameters_in_millions", unit="M", direction="lower")
        ...     @dataclass(frozen=True)
        ...     class Parameters(Metric):
        ...         def measure(self, subject, progress=SILENT):
        ...             return Result(sum(p.numel() for p in subject.model.parameters()) / 1e6)
        ...     make_metric("parameters_in_millions").columns[0].label
        'Parameters in millions, M'
    """
    unknown = [fact for fact in facts if fact.startswith("_") or not hasattr(Metric, fact)]
    if unknown:
        raise ValueError(f"unknown fact {unknown[0]!r} of metric {name!r}")
    if direction not in ("lower", "higher", None):
        raise ValueError(f"direction of metric {name!r} is 'lower', 'higher' or None")

    def register(cls: M) -> M:
        parameters = getattr(cls, "__dataclass_params__", None)
        if not issubclass(cls, Metric) or parameters is None or not parameters.frozen:
            raise ValueError(f"metric {name!r} is a frozen dataclass that derives from Metric")
        said = title or name.replace("_", " ").capitalize()
        known = {"name": name, "unit": unit, "direction": direction, "title": said, **facts}
        for fact, value in known.items():
            setattr(cls, fact, value)
        if "columns" not in facts and "columns" not in vars(cls):
            cls.columns = (_column(cls),)
        METRICS.add(name, cls, again=lambda taken: _source(taken) == _source(cls))
        return cls

    return register


def metric_names() -> list[str]:
    """The names of all metrics, in the order in which reports have them."""
    return [one.name for one in in_order()]


def metric_type(name: str) -> type[Metric]:
    """The class that is registered under a name; an unknown one is refused with all names."""
    return METRICS[name]


def in_order() -> list[type[Metric]]:
    """All metrics in the order in which reports have them."""
    return sorted(METRICS.all().values(), key=lambda one: (one.order, one.name))


def make_metric(name: str, options: Mapping[str, Any] | None = None) -> Metric:
    """A metric with its options, checked by their types.

    Raises:
        InvalidInputError: an unknown metric or option, or an invalid value.

    Example:
        >>> make_metric("perplexity", {"windows": 3}).windows
        3
    """
    return make_options(METRICS[name], f"metric {name}", options)


def stored(result: Any) -> dict[str, Any]:
    """A result as plain values of a report: what is None and the time it took are left out."""
    found = {k: v for k, v in dataclasses.asdict(result).items() if v is not None}
    found.pop("seconds", None)
    finite = getattr(result, "finite", None)
    return found if finite is None else {**found, "finite": finite}


def old_keys() -> dict[str, str]:
    """What recipes of older versions call a metric -> its name."""
    return {one.old_key: one.name for one in METRICS.all().values() if one.old_key}


def old_fields() -> dict[str, type[Metric]]:
    """The field of a stage that reports of formats 1 and 2 have for a metric -> the metric."""
    return {one.old_field: one for one in METRICS.all().values() if one.old_field}


def refused(reason: str, name: str) -> InvalidInputError:
    """The refusal of a metric that a model cannot have."""
    return InvalidInputError(f"it {reason}; leave {name} out, or set it to null")


def _source(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _column(cls: type[Metric]) -> Column:
    """The one column of a metric of one number."""
    return Column(
        cls.name,
        cls.name,
        f"{cls.title}, {cls.unit}" if cls.unit else cls.title,
        score_text,
        lower_is_better=None if cls.direction is None else cls.direction == "lower",
        meaning=(cls.__doc__ or cls.title).strip().split("\n\n")[0].replace("\n    ", " "),
        key="value",
        headline="measured",
    )


def _known(cls: type[Metric], values: Mapping[str, Any]) -> list[tuple[str, Column]]:
    """The columns whose numbers are there, with their keys."""
    keys = [(one.key or one.name, one) for one in cls.columns]
    return [(key, one) for key, one in keys if values.get(key) is not None]


def _sentences(cls: type[Metric], before: StageLike, after: StageLike, start: str) -> Iterator[str]:
    """One sentence for each column: from what to what, and whether that is within noise."""
    for column in cls.columns_of([before, after]):
        one, two = column.of(before), column.of(after)
        label = f"{start}{column.label}"
        if column.is_broken(after):
            yield f"{label} is not a finite number."
        elif two is None:
            continue
        elif before is after or one is None:
            yield f"{label} is {column.text(two)}."
        elif odd := differing(before, after, column.group):
            yield f"{label} cannot be compared: it was measured differently ({', '.join(odd)})."
        elif column.text(one) == column.text(two):
            yield f"{label} stayed at {column.text(two)}."
        else:
            course = "rose" if two > one else "fell"
            change = column.change_cell(before, after) or difference_text(two - one)
            yield f"{label} {course} from {column.text(one)} to {column.text(two)} ({change})."
