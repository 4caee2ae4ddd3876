"""A column of the before/after table: how its number is read, written and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modwright.core.formatting import MISSING, count_text, scaled_text
from modwright.report.data import Stage

__all__ = ["Metric", "differing", "ratio"]


@dataclass(frozen=True)
class Metric:
    """One column of the before/after table.

    Attributes:
        group: field of a stage that holds the number and its recipe.
        name: key of the number in its group.
        label: heading, with the unit.
        text: writes the number.
        change: writes the ratio after / before.
        less, more: words for a ratio below and above 1.
        lower_is_better: which way a user wants it to go; None where nobody knows.
        meaning: what it is, in one sentence, where no table says it.
    """

    group: str
    name: str
    label: str
    text: Callable[[float], str]
    change: Callable[[float], str]
    less: str = "lower"
    more: str = "higher"
    lower_is_better: bool | None = True
    meaning: str = ""

    def of(self, stage: Stage) -> float | None:
        """The number that a stage has for it, or None."""
        return (getattr(stage, self.group) or {}).get(self.name)

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
        if before is stage or differing(before, stage, self.group):
            return ""
        value = self.shift(before, stage)
        return "" if value is None else self.change(value)

    def shift(self, before: Stage, stage: Stage) -> float | None:
        """How far the number went: after / before; None where that cannot be said."""
        return ratio(self.of(before), self.of(stage))

    def summary_sentence(self, before: Stage, stage: Stage) -> str:
        """``"10.7 % smaller"``, ``"× 1.18 higher"``, ``"unchanged"``, or nothing."""
        change = self.change_cell(before, stage)
        if change in ("0.0 %", "× 1.00", "0.0000"):
            return "unchanged"
        word = self.less if self._fell(before, stage) else self.more
        return f"{change.lstrip('−+')} {word}" if change else ""

    def has_headline(self, before: Stage, stage: Stage) -> bool:
        """Whether the number may stand at the top of a page."""
        return True

    def direction(self, before: Stage, stage: Stage) -> str:
        """``"better"``, ``"worse"`` or ``"same"``, by the change that is shown."""
        if (
            self.summary_sentence(before, stage) in ("", "unchanged")
            or self.lower_is_better is None
        ):
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


def differing(before: Stage, after: Stage, group: str) -> list[str]:
    """The recipe entries in which two stages' measurements of a group differ.

    Numbers are compared where there are none; a batch size changes the time of a measurement alone.
    """
    if not getattr(before, group) or not getattr(after, group):
        return []
    one, two = (getattr(stage, group).get("recipe") or {} for stage in (before, after))
    harmless = {"batch_size"} if group in ("quality", "agreement", "harness") else set()
    names = [name for name in {**one, **two} if name not in harmless]
    return [name for name in names if one.get(name) != two.get(name)]
