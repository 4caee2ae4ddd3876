"""One number of a metric beside the same number of other stages: how it is written and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from modwright.core.formatting import MISSING, count_text, factor_text, number_text, scaled_text
from modwright.metrics.interval import Interval, paired_change

__all__ = ["Column", "DifferenceColumn", "StageLike", "differing", "points_text", "ratio"]

_HARMLESS = frozenset({"batch_size"})
_UNCHANGED = ("0.0 %", "× 1.00", "0.0000", "0.0 points", "+0.00 dB")


class StageLike(Protocol):
    """What a metric reads of a stage of a report: the model before the first step or after one."""

    @property
    def name(self) -> str: ...

    @property
    def method(self) -> str | None:
        """Of the step; None for the baseline."""

    @property
    def cost(self) -> dict[str, Any]: ...

    @property
    def measured(self) -> dict[str, Any]:
        """By the name of a metric what it stored, with ``finite`` and ``recipe``."""


@dataclass(frozen=True)
class Column:
    """One column of the before/after table.

    Attributes:
        group: the metric whose number it is, or "cost".
        name: of the column, as messages and pages know it.
        label: heading, with the unit.
        text: writes the number.
        change: writes the ratio after / before.
        less, more: words for a ratio below and above 1.
        lower_is_better: which way a user wants it to go; None where nobody knows.
        meaning: what it is, in one sentence.
        key: where the metric stores the number; the name, unless it is said.
        headline: "always" at the top of a page, with "not measured" where it is missing;
            "measured" where it was; "against" where it was, as a number that compares with the
            baseline already; "" never.
        by_window: the column whose numbers of each window tell how sure a change is; "" has none.
    """

    group: str
    name: str
    label: str
    text: Callable[[float], str] = number_text
    change: Callable[[float], str] = factor_text
    less: str = "lower"
    more: str = "higher"
    lower_is_better: bool | None = True
    meaning: str = ""
    key: str = ""
    headline: Literal["always", "measured", "against", ""] = ""
    by_window: str = ""

    def stored(self, stage: StageLike) -> Mapping[str, Any]:
        """What stands in a stage under its group."""
        found = stage.cost if self.group == "cost" else stage.measured.get(self.group)
        return found or {}

    def of(self, stage: StageLike) -> float | None:
        """The number that a stage has for it, or None."""
        return self.stored(stage).get(self.key or self.name)

    def cell(self, stage: StageLike) -> str:
        """The number in words, or a dash; one that was measured and is no number says so."""
        value = self.of(stage)
        if value is not None:
            return self.text(value)
        return "not finite" if self.is_broken(stage) else MISSING

    def is_broken(self, stage: StageLike) -> bool:
        """Whether it was measured and what came out is not a finite number."""
        values = self.stored(stage)
        return (self.key or self.name) in values and not values.get("finite", True)

    def brief(self, stage: StageLike) -> str:
        """The number for a headline: large counts shortened, and words where it is missing."""
        value = self.of(stage)
        if value is not None and self.text is count_text:
            return scaled_text(value)
        cell = self.cell(stage)
        return "not measured" if cell == MISSING else cell

    def change_cell(self, before: StageLike, stage: StageLike) -> str:
        """The change from one stage to another, or nothing where it cannot be said."""
        if before is stage or differing(before, stage, self.group):
            return ""
        value = self.shift(before, stage)
        if value is None:
            return ""
        noise = ", within noise" if self.is_within_noise(before, stage) else ""
        return self.change(value) + noise

    def shift(self, before: StageLike, stage: StageLike) -> float | None:
        """How far the number went: after / before; None where that cannot be said."""
        return ratio(self.of(before), self.of(stage))

    def interval(self, before: StageLike, stage: StageLike) -> Interval | None:
        """Where the difference of the means over windows lies; None where that is not known."""
        if not self.by_window or differing(before, stage, self.group):
            return None
        windows = [self.stored(one).get("by_window") or {} for one in (before, stage)]
        (first, counts), (second, others) = (
            (one.get(self.by_window) or [], one.get("counts") or []) for one in windows
        )
        known = None not in (*first, *second) and counts == others
        return paired_change(first, second, counts) if known else None

    def is_within_noise(self, before: StageLike, stage: StageLike) -> bool:
        """Whether no difference is seen: the interval of the change over windows covers none."""
        found = self.interval(before, stage)
        return found is not None and found.low < found.high and found.covers(0)

    def summary_sentence(self, before: StageLike, stage: StageLike) -> str:
        """``"10.7 % smaller"``, ``"× 1.18 higher"``, ``"unchanged"``, or nothing."""
        change = self.change_cell(before, stage)
        if change.partition(",")[0] in _UNCHANGED:
            return "unchanged"
        word = self.less if self._fell(before, stage) else self.more
        amount, noise, _ = change.lstrip("−+").partition(", within noise")
        return f"{amount} {word}{noise}" if amount else ""

    def has_headline(self, before: StageLike, stage: StageLike) -> bool:
        """Whether the number may stand at the top of a page."""
        return True

    def direction(self, before: StageLike, stage: StageLike) -> str:
        """``"better"``, ``"worse"`` or ``"same"``, by the change that is shown."""
        if (
            self.summary_sentence(before, stage) in ("", "unchanged")
            or self.lower_is_better is None
            or self.is_within_noise(before, stage)
        ):
            return "same"
        return "better" if self._fell(before, stage) == self.lower_is_better else "worse"

    def _fell(self, before: StageLike, stage: StageLike) -> bool:
        one, two = self.of(before), self.of(stage)
        return one is not None and two is not None and two < one


class DifferenceColumn(Column):
    """A column whose change is a difference, in the number's own unit."""

    def shift(self, before: StageLike, stage: StageLike) -> float | None:
        one, two = self.of(before), self.of(stage)
        return None if one is None or two is None else two - one


def points_text(value: float) -> str:
    """What a share went up or down by, in points of a percentage.

    Example:
        >>> points_text(-0.021), points_text(0.0001)
        ('−2.1 points', '0.0 points')
    """
    amount = f"{abs(100 * value):.1f} points"
    return amount if amount == "0.0 points" else f"{'−' if value < 0 else '+'}{amount}"


def ratio(before: float | None, after: float | None) -> float | None:
    """After / before, or None where one is missing or nothing can be divided by.

    Example:
        >>> ratio(2.0, 3.0), ratio(None, 3.0), ratio(0, 3.0)
        (1.5, None, None)
    """
    return None if before is None or after is None or before <= 0 else after / before


def differing(before: StageLike, after: StageLike, group: str) -> list[str]:
    """The recipe entries in which two stages' measurements of a group differ.

    Numbers are compared where there are none; a batch size changes the time of a measurement alone.
    """
    stages = (before, after)
    found = [stage.cost if group == "cost" else stage.measured.get(group) for stage in stages]
    if not found[0] or not found[1]:
        return []
    one, two = ((values or {}).get("recipe") or {} for values in found)
    names = [name for name in {**one, **two} if name not in _HARMLESS]
    return [name for name in names if one.get(name) != two.get(name)]
