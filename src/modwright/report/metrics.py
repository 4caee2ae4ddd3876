"""The columns of the before/after table: how each number is read, written and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modwright.report.data import Report, Stage
from modwright.report.numerals import (
    MISSING,
    bytes_text,
    count_text,
    factor_text,
    number_text,
    percent_text,
    scaled_text,
)

__all__ = ["METRICS", "Metric", "comparable", "differing", "ratio", "shown_metrics"]


@dataclass(frozen=True)
class Metric:
    """One column of the before/after table.

    Attributes:
        name: key of the number in its group.
        group: field of a stage that holds the number and its recipe.
        label: heading, with the unit.
        text: writes the number.
        change: writes the ratio after / before.
        less: word for a ratio below 1.
        more: word for a ratio above 1.
        lower_is_better: which way a user wants it to go.
        meaning: what it is, in one sentence.
    """

    name: str
    group: str
    label: str
    text: Callable[[float], str]
    change: Callable[[float], str]
    less: str
    more: str
    lower_is_better: bool
    meaning: str

    @property
    def wanted(self) -> str:
        """Which way is the good one, in words."""
        return "lower is better" if self.lower_is_better else "higher is better"

    def of(self, stage: Stage) -> float | None:
        """The number that a stage has for it, or None."""
        values: Mapping[str, Any] = getattr(stage, self.group) or {}
        value: float | None = values.get(self.name)
        return value

    def cell(self, stage: Stage) -> str:
        """The number in words, or a dash; a perplexity that is no number says so."""
        value = self.of(stage)
        if value is not None:
            return self.text(value)
        return "not finite" if self.name == "perplexity" and stage.is_broken else MISSING

    def brief(self, stage: Stage) -> str:
        """The number for a headline: large counts shortened, and words where it is missing."""
        value = self.of(stage)
        if value is not None and self.text is count_text:
            return scaled_text(value)
        cell = self.cell(stage)
        return "not measured" if cell == MISSING else cell

    def change_cell(self, before: Stage, stage: Stage) -> str:
        """The change from one stage to another, or nothing where it cannot be said."""
        if before is stage or not comparable(before, stage, self.group):
            return ""
        value = ratio(self.of(before), self.of(stage))
        return "" if value is None else self.change(value)

    def verdict(self, before: Stage, stage: Stage) -> str:
        """``"10.7 % smaller"``, ``"× 1.18 higher"``, ``"unchanged"``, or nothing."""
        change = self.change_cell(before, stage)
        if not change:
            return ""
        value = ratio(self.of(before), self.of(stage)) or 1.0
        if change in ("0.0 %", "× 1.00"):
            return "unchanged"
        return f"{change.lstrip('−+')} {self.less if value < 1 else self.more}"

    def direction(self, before: Stage, stage: Stage) -> str:
        """``"better"``, ``"worse"`` or ``"same"``, by the change that is shown."""
        words = self.verdict(before, stage)
        if not words or words == "unchanged":
            return "same"
        fell = (ratio(self.of(before), self.of(stage)) or 1.0) < 1
        return "better" if fell == self.lower_is_better else "worse"


METRICS = (
    Metric(
        "parameters",
        "cost",
        "Parameters",
        count_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Numbers that the model has learned; a table used twice counts once.",
    ),
    Metric(
        "stored_bytes",
        "cost",
        "Weights on disk",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes of the weight files (1 MB is 1,000,000 bytes).",
    ),
    Metric(
        "perplexity",
        "quality",
        "Perplexity",
        number_text,
        factor_text,
        "lower",
        "higher",
        True,
        "About how many equally likely tokens the model hesitates between at each token of a text. "
        "Lower is better; only numbers measured the same way can be compared.",
    ),
    Metric(
        "prefill_macs",
        "cost",
        "Prefill MACs",
        scaled_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Multiplications with addition needed to read the prompt.",
    ),
    Metric(
        "decode_macs",
        "cost",
        "Decode MACs/token",
        scaled_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Multiplications with addition needed to write one more token.",
    ),
    Metric(
        "kv_bytes",
        "cost",
        "KV cache",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes that the attentions keep of the text read so far.",
    ),
    Metric(
        "activation_bytes",
        "cost",
        "Activations",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes of the largest set of intermediate values alive at once while reading the prompt.",
    ),
    Metric(
        "prefill_tokens_per_second",
        "speed",
        "Prefill tokens/s",
        number_text,
        percent_text,
        "slower",
        "faster",
        False,
        "Measured tokens of the prompt read per second on the machine named below.",
    ),
    Metric(
        "decode_tokens_per_second",
        "speed",
        "Decode tokens/s",
        number_text,
        percent_text,
        "slower",
        "faster",
        False,
        "Measured tokens written per second on the machine named below.",
    ),
)


def shown_metrics(report: Report) -> list[Metric]:
    """The metrics that at least one stage has, in the order of the columns."""
    return [
        metric
        for metric in METRICS
        if any(metric.cell(stage) != MISSING for stage in report.stages)
    ]


def ratio(before: float | None, after: float | None) -> float | None:
    """After / before, or None where one is missing or nothing can be divided by.

    Example:
        >>> ratio(2.0, 3.0), ratio(None, 3.0), ratio(0, 3.0)
        (1.5, None, None)
    """
    return None if before is None or after is None or before <= 0 else after / before


# These change the time that a measurement takes, not its number.
_HARMLESS = {"quality": {"batch_size"}}


def comparable(before: Stage, after: Stage, group: str) -> bool:
    """Whether two stages' numbers of a group were measured by the same recipe."""
    return not differing(before, after, group)


def differing(before: Stage, after: Stage, group: str) -> list[str]:
    """The recipe entries in which two stages' measurements of a group differ."""
    one, two = (_recipe(stage, group) for stage in (before, after))
    if one is None or two is None:
        return []
    names = [name for name in {**one, **two} if name not in _HARMLESS.get(group, ())]
    return [name for name in names if one.get(name) != two.get(name)]


def _recipe(stage: Stage, group: str) -> dict[str, Any] | None:
    values = getattr(stage, group)
    return values.get("recipe") or {} if values else None
