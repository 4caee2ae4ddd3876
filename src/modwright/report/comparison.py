"""Models beside each other, one row each: means and spreads over seeds, against one baseline."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modwright.core.errors import InvalidInputError
from modwright.core.formatting import MISSING, bytes_text, percent_text, seconds_text
from modwright.metrics.column import Column, StageLike, differing
from modwright.metrics.registry import in_order
from modwright.report.columns import all_columns
from modwright.report.data import Stage

__all__ = ["Comparison", "Measured", "Row", "compared_columns"]

_CONFIDENCE = 0.95
_COUNTED = ("parameters", "prefill_macs")
_MEMORY = ("stored_bytes", "kv_bytes", "state_bytes", "activation_bytes")


@dataclass(frozen=True)
class Measured:
    """One model of a row.

    Attributes:
        label: which one it is: "seed 0"; "" where a row has one model.
        stage: what was measured of it.
        seconds: how long it took to make, as wall-clock time; None where that is not known.
        place: where it stands.
    """

    label: str
    stage: Stage
    seconds: float | None = None
    place: str = ""

    @property
    def cost(self) -> dict[str, Any]:
        """What it costs, with its memory as one number, and the seconds."""
        parts = [self.stage.cost.get(name) for name in _MEMORY]
        known = [part for part in parts if part is not None]
        memory = sum(known) if self.stage.cost.get("activation_bytes") is not None else None
        return {**self.stage.cost, "memory_bytes": memory, "seconds": self.seconds}


@dataclass(frozen=True)
class _Numbers:
    """What columns read: the numbers of one model, or the means of several."""

    name: str
    cost: dict[str, Any]
    measured: dict[str, Any]
    method: str | None = None


@dataclass(frozen=True)
class Row:
    """An arm of a study with all its seeds, or one model.

    Example:
        >>> from modwright.report import Stage
        >>> stages = [Stage("after", measured={"perplexity": {"value": v}}) for v in (30.0, 34.0)]
        >>> row = Row("plain", tuple(Measured(f"seed {i}", s) for i, s in enumerate(stages)))
        >>> column = compared_columns([row])[0]
        >>> row.mean(column), round(row.spread(column), 3), row.cell(column)
        (32.0, 2.828, '32.00 ± 2.83')
    """

    name: str
    models: tuple[Measured, ...]

    def each(self) -> list[_Numbers]:
        """What columns read of each model."""
        return [_Numbers(self.name, one.cost, one.stage.measured) for one in self.models]

    def values(self, column: Column) -> list[float]:
        """The finite numbers of its models."""
        return [number for one in self.each() if (number := column.of(one)) is not None]

    def broken(self, column: Column) -> int:
        """How many of its models were measured and gave no finite number."""
        return sum(column.is_broken(one) for one in self.each())

    def mean(self, column: Column) -> float | None:
        """Over its models with a finite number."""
        values = self.values(column)
        return statistics.fmean(values) if values else None

    def spread(self, column: Column) -> float | None:
        """The standard deviation over its models; None of fewer than two."""
        values = self.values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    def cell(self, column: Column) -> str:
        """Mean and spread in words; a spread of zero is left out."""
        mean, spread, broken = self.mean(column), self.spread(column), self.broken(column)
        if mean is None:
            return "not finite" if broken else MISSING
        text = f"{column.text(mean)} ± {column.text(spread)}" if spread else column.text(mean)
        return f"{text}, {broken} of {len(self.models)} not finite" if broken else text

    def change(self, baseline: Row, column: Column) -> str:
        """How far the mean is from the baseline's, and whether that is within noise.

        Of several seeds that both have, noise is that of the differences seed by seed, by
        Student's t. Where neither differs between its seeds, it is that of the windows that they
        were measured on.
        """
        if baseline is self:
            return ""
        if not self.spread(column) and not baseline.spread(column):
            return column.change_cell(baseline.each()[0], self.each()[0])
        text = column.change_cell(baseline.mean_numbers, self.mean_numbers)
        return f"{text}, within noise" if text and self._is_noise(baseline, column) else text

    @cached_property
    def mean_numbers(self) -> StageLike:
        """The means of all columns, as one stage that columns can read."""
        first = self.each()[0]
        cost, measured = dict(first.cost), {k: dict(v) for k, v in first.measured.items()}
        for column in compared_columns([self]):
            stored = cost if column.group == "cost" else measured.setdefault(column.group, {})
            stored[column.key or column.name] = self.mean(column)
            stored.pop("by_window", None)
        return _Numbers(self.name, cost, measured)

    def _is_noise(self, baseline: Row, column: Column) -> bool:
        numbers = [
            {one.label: column.of(found) for one, found in zip(row.models, row.each())}
            for row in (baseline, self)
        ]
        pairs = [(numbers[0].get(label), after) for label, after in numbers[1].items()]
        found = [b - a for a, b in pairs if a is not None and b is not None]
        if len(found) < 2 or not any(found):
            return False
        from scipy.stats import t

        reach = t.ppf((1 + _CONFIDENCE) / 2, len(found) - 1)
        spread = float(reach) * statistics.stdev(found) / math.sqrt(len(found))
        return abs(statistics.fmean(found)) < spread

    def to_dict(self, columns: Sequence[Column]) -> dict[str, Any]:
        """The numbers of the row, and what was measured of each model."""
        numbers = {
            one.name: {
                "mean": self.mean(one),
                "spread": self.spread(one),
                "values": [one.of(found) for found in self.each()],
            }
            for one in columns
        }
        models = [{**vars(one), "stage": one.stage.to_dict()} for one in self.models]
        return {"name": self.name, "numbers": numbers, "models": models}


@dataclass(frozen=True)
class Comparison:
    """Rows beside each other; the first is the baseline.

    Attributes:
        title: heading of the page.
        rows: with different names.
        kind: what one row is: "arm", "model".
        column: the number that is drawn and spoken of; the first of quality unless it is said.
        kept: name of the row and label of the model that was kept as the result.
        notes: sentences beside those that follow from the numbers.
        facts: what the page tells of how it was made: "created", "versions", "reproduce", "study".

    Raises:
        InvalidInputError: no rows, or two of one name.
    """

    title: str
    rows: tuple[Row, ...]
    kind: str = "model"
    column: Column | None = None
    kept: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise InvalidInputError(f"there is no {self.kind} to compare")
        names = [row.name for row in self.rows]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise InvalidInputError(f"two {self.kind}s are called {name!r}; name each once")

    @property
    def baseline(self) -> Row:
        """What the others are compared with."""
        return self.rows[0]

    @cached_property
    def columns(self) -> list[Column]:
        """What at least one row has a number of."""
        return compared_columns(self.rows)

    @cached_property
    def quality(self) -> Column | None:
        """The number that is drawn; None where nothing was measured."""
        return self.column or next((c for c in self.columns if c.group != "cost"), None)

    def ranked(self, column: Column) -> list[Row]:
        """The rows that have a number, the best first; one with models that broke goes last."""
        sign = 1 if column.lower_is_better else -1
        means = {row.name: row.mean(column) for row in self.rows}
        known = [row for row in self.rows if means[row.name] is not None]
        return sorted(known, key=lambda row: (row.broken(column), sign * (means[row.name] or 0.0)))

    def differently(self) -> list[str]:
        """Sentences on rows that were not measured as the baseline was."""
        first = self.baseline.each()[0]
        found = []
        for group in dict.fromkeys(column.group for column in self.columns):
            odd = {
                row.name: names
                for row in self.rows
                for one in row.each()
                if (names := differing(first, one, group))
            }
            if odd:
                what = ", ".join(dict.fromkeys(name for names in odd.values() for name in names))
                found.append(
                    f"{group} was measured differently ({what}) and is not compared with the "
                    f"baseline: {', '.join(odd)}."
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("name", "label", "group", "lower_is_better")
        return {
            "format": 1,
            "title": self.title,
            "kind": self.kind,
            "baseline": self.baseline.name,
            "columns": [{key: getattr(one, key) for key in keys} for one in self.columns],
            "rows": [row.to_dict(self.columns) for row in self.rows],
            "kept": self.kept,
            "notes": list(self.notes),
            **self.facts,
        }


def compared_columns(rows: Sequence[Row]) -> list[Column]:
    """Counted costs, quality and time of the rows, as far as one of them has a number."""
    stages = [one for row in rows for one in row.each()]
    costs = {column.name: column for column in all_columns() if column.group == "cost"}
    memory = dataclasses.replace(
        costs["stored_bytes"],
        name="memory_bytes",
        label="Memory",
        text=bytes_text,
        change=percent_text,
        meaning="Bytes of weights, cache and activations while the prompt is read, as counted.",
    )
    seconds = Column(
        "cost",
        "seconds",
        "Seconds",
        seconds_text,
        less="shorter",
        more="longer",
        meaning="Wall-clock time of all steps and measurements of one model.",
    )
    quality = [c for m in in_order() if m.is_quality for c in m.columns_of(stages)]
    found = [costs[_COUNTED[0]], *quality, costs[_COUNTED[1]], memory, seconds]
    return [column for column in found if any(column.cell(one) != MISSING for one in stages)]
