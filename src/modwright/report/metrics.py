"""A column of the before/after table: how its number is read, written and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modwright.core.formatting import MISSING, count_text, scaled_text
from modwright.report.data import Stage

__all__ = ["Metric", "comparable", "differing", "ratio"]

_UNCHANGED = ("0.0 %", "× 1.00", "0.0000")


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
        lower_is_better: which way a user wants it to go; None where nobody knows.
        meaning: what it is, in one sentence.
    """

    name: str
    group: str
    label: str
    text: Callable[[float], str]
    change: Callable[[float], str]
    less: str
    more: str
    lower_is_better: bool | None
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
        """The number in words, or a dash; one that was measured and is no number says so."""
        value = self.of(stage)
        if value is not None:
            return self.text(value)
        return "not finite" if self.is_broken(stage) else MISSING

    def is_broken(self, stage: Stage) -> bool:
        """Whether it was measured and what came out is not a finite number."""
        values = getattr(stage, self.group) or {}
        return self.name in values and not values.get("finite", True)

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
        value = self.shift(before, stage)
        return "" if value is None else self.change(value)

    def shift(self, before: Stage, stage: Stage) -> float | None:
        """How far the number went: after / before; None where that cannot be said."""
        return ratio(self.of(before), self.of(stage))

    def summary_sentence(self, before: Stage, stage: Stage) -> str:
        """``"10.7 % smaller"``, ``"× 1.18 higher"``, ``"unchanged"``, or nothing."""
        change = self.change_cell(before, stage)
        if not change:
            return ""
        if change in _UNCHANGED:
            return "unchanged"
        return f"{change.lstrip('−+')} {self.less if self._fell(before, stage) else self.more}"

    def has_headline(self, before: Stage, stage: Stage) -> bool:
        """Whether the number may stand at the top of a page."""
        return True

    def direction(self, before: Stage, stage: Stage) -> str:
        """``"better"``, ``"worse"`` or ``"same"``, by the change that is shown."""
        words = self.summary_sentence(before, stage)
        if not words or words == "unchanged" or self.lower_is_better is None:
            return "same"
        return "better" if self._fell(before, stage) == self.lower_is_better else "worse"

    def _fell(self, before: Stage, stage: Stage) -> bool:
        one, two = self.of(before), self.of(stage)
        return one is not None and two is not None and two < one


def ratio(before: float | None, after: float | None) -> float | None:
    """After / before, or None where one is missing or nothing can be divided by.

    Example:
        >>> ratio(2.0, 3.0), ratio(None, 3.0), ratio(0, 3.0)
        (1.5, None, None)
    """
    return None if before is None or after is None or before <= 0 else after / before


# These change the time that a measurement takes, not its number.
_HARMLESS = {group: {"batch_size"} for group in ("quality", "agreement", "harness")}


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
