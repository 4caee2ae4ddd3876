"""The figure of a comparison: a number of quality against parameters, and what is not beaten."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modwright.core.formatting import number_text, scaled_text, tick_text
from modwright.metrics.column import Column
from modwright.report.columns import words_of
from modwright.report.comparison import Comparison, Row
from modwright.report.plots import Plot, label_points, set_log_scale, set_ticks
from modwright.report.svg import BASE, GONE, KEPT, canvas, inline_svg, style

__all__ = ["pareto", "pareto_front"]

_DOT: dict[str, Any] = {"s": 14, "color": BASE, "zorder": 2}
_LONGEST = 20

Point = tuple[str, float, float]  # a row, its parameters, its number


def pareto_front(points: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """Those than which no other is better with as many parameters or fewer, the smallest first.

    Example:
        >>> points = [("a", 1.0, 9.0), ("b", 2.0, 9.5), ("c", 3.0, 7.0)]
        >>> [name for name, _, _ in pareto_front(points, lower_is_better=True)]
        ['a', 'c']
    """
    sign = 1 if lower_is_better else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one[1], sign * one[2])):
        if not found or sign * point[2] < sign * found[-1][2]:
            found.append(point)
    return found


@style()
def pareto(comparison: Comparison) -> tuple[Plot, bytes] | None:
    """The figure and the same as PNG; None where no row has a number of quality.

    Where all rows have as many parameters, the number is drawn row by row.
    """
    column, size = comparison.quality, comparison.columns[0]
    if column is None:
        return None
    rows = [row for row in comparison.rows if row.mean(column) is not None and row.mean(size)]
    points = [(row.name, row.mean(size) or 0.0, row.mean(column) or 0.0) for row in rows]
    if not points:
        return None
    missing = [row.name for row in comparison.rows if row not in rows]
    is_flat = len({x for _, x, _ in points}) == 1
    if is_flat:
        figure, caption = _row_by_row(rows, points, column)
    else:
        figure, caption = _against_size(rows, points, column, size)
    if any(len(row.models) > 1 for row in rows):
        caption += " Small dots are single seeds, bars reach one standard deviation to each side."
    if missing:
        caption += f" Not drawn, for want of a finite number: {', '.join(missing)}."
    told = "; ".join(f"{n}: {column.text(y)} at {scaled_text(x)} parameters" for n, x, y in points)
    svg = inline_svg(figure, "pareto", f"{column.label} against parameters. {told}.")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=216, facecolor="white", metadata={"Software": None})
    what, _ = words_of(column)
    title = (
        f"{what[:1].upper()}{what[1:]} of each {comparison.kind}"
        if is_flat
        else "Quality against size"
    )
    return Plot(title, caption, svg), image.getvalue()


def _against_size(
    rows: Sequence[Row], points: Sequence[Point], column: Column, size: Column
) -> tuple[Figure, str]:
    figure = canvas(280)
    axes = figure.add_subplot()
    caption = "Further left is smaller."
    what, better = words_of(column)
    if better:
        front = pareto_front(points, better == "lower")
        xs, ys = zip(*((x, y) for _, x, y in front))
        axes.plot(xs, ys, color=BASE, linewidth=1.5, zorder=1)
        beaten = [point for point in points if point not in front]
        axes.scatter([x for _, x, _ in beaten], [y for _, _, y in beaten], **_mean(GONE, "s"))
        axes.scatter(xs, ys, **_mean(KEPT, "o"))
        way = "down" if better == "lower" else "up"
        caption = (
            f"Further left is smaller, further {way} is better. The line joins those that no other "
            "one beats with as many parameters or fewer; the others are squares."
        )
    else:
        axes.scatter([x for _, x, _ in points], [y for _, _, y in points], **_mean(KEPT, "o"))
    for row, (_, x, y) in zip(rows, points):
        pairs = [(size.of(one), column.of(one)) for one in row.each()]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(known) > 1:
            axes.scatter(*zip(*known), **_DOT)
            axes.errorbar(x, y, yerr=row.spread(column), color=BASE, zorder=2)
    axes.margins(x=0.12, y=0.2)
    set_ticks(axes.xaxis, 4, tick_text)
    is_log = set_log_scale(axes.yaxis, [v for row in rows for v in row.values(column)])
    axes.grid(axis="y")
    axes.set_xlabel("parameters")
    axes.set_ylabel(_axis(what, better, is_log))
    figure.draw_without_rendering()
    label_points(axes, sorted(points, key=lambda point: point[1]), column.text)
    return figure, caption


def _row_by_row(rows: Sequence[Row], points: Sequence[Point], column: Column) -> tuple[Figure, str]:
    figure = canvas(70 + 26 * len(rows))
    axes: Axes = figure.add_subplot()
    what, better = words_of(column)
    for at, row in enumerate(rows):
        values = row.values(column)
        if len(values) > 1:
            axes.scatter(values, [at] * len(values), **_DOT)
            axes.errorbar(points[at][2], at, xerr=row.spread(column), color=BASE, zorder=2)
    axes.scatter([y for _, _, y in points], range(len(points)), **_mean(KEPT, "o"))
    names = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n, _, _ in points]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.12)
    is_log = set_log_scale(axes.xaxis, [v for row in rows for v in row.values(column)])
    axes.grid(axis="x")
    axes.set_xlabel(_axis(what, better, is_log))
    return figure, f"All have {number_text(points[0][1])} parameters."


def _mean(color: str, marker: str) -> dict[str, Any]:
    return {"s": 44, "color": color, "marker": marker, "zorder": 3}


def _axis(what: str, better: str, is_log: bool) -> str:
    return f"{what}{', log scale' if is_log else ''}{f' ({better} is better)' if better else ''}"
