"""What an analysis found: a number beside what nothing would give, and how both are drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.options import make_options
from modwright.edits import Plan

__all__ = ["Chart", "Finding"]

F = TypeVar("F", bound="Finding")


@dataclass(frozen=True)
class Chart:
    """Lines over layers, steps and the like; :meth:`draw` is overridden for other figures.

    Attributes:
        title, caption: its heading, and how it is read.
        x, y: labels of the axes.
        series: values by label; None leaves a gap.
        null: what nothing would give, for all or one by one; drawn dashed.
        at: where on the x axis values stand; 0, 1, 2 and so on by default.
        log: the y axis is logarithmic.
    """

    title: str
    caption: str
    x: str
    y: str
    series: Mapping[str, Sequence[float | None]]
    null: float | Sequence[float] | None = None
    at: Sequence[float] = ()
    log: bool = False

    def draw(self, axes: Any) -> None:
        """Draws into matplotlib's axes; their style is set by who calls it."""
        longest = max((len(values) for values in self.series.values()), default=0)
        at = list(self.at) or list(range(longest))
        for label, values in self.series.items():
            numbers = [float("nan") if value is None else value for value in values]
            axes.plot(at[: len(numbers)], numbers, marker="o", markersize=3, label=label)
        if self.null is not None:
            several = isinstance(self.null, Sequence)
            null = list(self.null) if isinstance(self.null, Sequence) else [self.null] * len(at)
            look = {"color": "#8d98a5", "linestyle": "--", "label": "null"}
            axes.plot(at[: len(null)] if several else at, null, **look)
        axes.xaxis.get_major_locator().set_params(integer=not self.at)
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.y)
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Base of findings: frozen dataclasses of plain values, which JSON keeps.

    Attributes:
        value: the number that the analysis is about.
        null: the largest that it would be if there were nothing to find.
        recipe: how it was measured: analysis, options, model, data; :func:`analyze` fills it.
    """

    value: float
    null: float
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether the number is above its null."""
        return self.value > self.null

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which :meth:`from_dict` reads."""
        stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return stored

    @classmethod
    def from_dict(cls: type[F], stored: Mapping[str, Any]) -> F:
        """A finding of what :meth:`to_dict` gave.

        Raises:
            InvalidInputError: it is of another kind, or values are missing or wrong.
        """
        if not isinstance(stored, Mapping):
            raise InvalidInputError(f"a finding is a mapping, not {type(stored).__name__}")
        return make_options(cls, cls.__name__, stored, strict=False, word="value")

    def charts(self) -> Sequence[Chart]:
        """Its figures, the most telling first."""
        return ()

    def lines(self) -> Sequence[str]:
        """What it says beside the number and its null, line by line."""
        return ()

    def plan(self, anatomy: Anatomy) -> Plan | None:
        """The edit that it suggests for the model it was found in; None where there is none."""
        return None
