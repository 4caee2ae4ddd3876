"""The figures of a report and of a training as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from modwright.core.formatting import number_text, scaled_text, share_text, tick_text
from modwright.metrics.column import Column
from modwright.report.columns import quality_columns, words_of
from modwright.report.data import Report, Stage
from modwright.report.svg import BASE, GONE, KEPT, LINE, WIDTH, canvas, inline_svg, style

__all__ = ["Plot", "curve", "label_box", "label_points", "place_labels", "plots", "scores"]
__all__ += ["set_log_scale", "set_ticks", "shapes", "sparsity", "training_curves"]

_KINDS = ("attention", "mlp", "block")
_REMOVED: dict[str, Any] = {"fill": False, "edgecolor": GONE, "hatch": "/////"}

# Of system fonts at 12 units: a little more than the average advance, and the line height.
_CHARACTER = 6.5
_HEIGHT = 14.0
_POINT = 5.0
_SAMPLES = 24

# Offsets of a text's near corner, y upwards: beside the point first, then further and further away.
_OFFSETS = [
    (side * dx, way * dy)
    for dx, dy in ((6.0, 5.0), (8.0, 22.0), (8.0, 38.0), (8.0, 54.0), (8.0, 70.0), (8.0, 86.0))
    for side, way in ((1, 1), (-1, -1), (-1, 1), (1, -1))
]

Point = tuple[float, float]


class Plot(NamedTuple):
    """One figure: its heading, how to read it, and an ``<svg>`` element."""

    title: str
    caption: str
    svg: str


def plots(report: Report) -> list[Plot]:
    """Every figure for which the report has the numbers."""
    found = [curve(report), shapes(report.before, report.after)]
    for index, stage in enumerate(report.stages[1:], start=1):
        found += [scores(stage, f"scores-{index}"), sparsity(stage, f"sparsity-{index}")]
    return [plot for plot in found if plot is not None]


@style()
def curve(report: Report) -> Plot | None:
    """The first number of quality against parameters, one point per stage.

    It is the first that two stages have; None where there is none.
    """
    column = next((one for one in quality_columns(report) if len(_points(report, one)) > 1), None)
    if column is None:
        return None
    points = _points(report, column)
    what, better = words_of(column)
    names, xs, ys = zip(*points)
    missing = [stage.name for stage in report.stages if stage.name not in names]
    figure = canvas(280)
    axes = figure.add_subplot()
    axes.plot(xs, ys, color=BASE, linewidth=1.5, zorder=2)
    axes.scatter(xs, ys, s=44, color=KEPT, zorder=3)
    axes.margins(x=0.12, y=0.2)
    set_ticks(axes.xaxis, 4, tick_text)
    is_log = set_log_scale(axes.yaxis, ys)
    axes.grid(axis="y")
    axes.set_xlabel("parameters")
    hint = f" ({better} is better)" if better else ""
    axes.set_ylabel(f"{what}{', log scale' if is_log else ''}{hint}")
    figure.draw_without_rendering()
    label_points(axes, points, column.text)
    told = "; ".join(
        f"{name}: {column.text(y)} at {scaled_text(x)} parameters" for name, x, y in points
    )
    way = {"lower": ", further down is better", "higher": ", further up is better"}.get(better, "")
    caption = (
        "Each point is the model after a step; the line joins them in order. Further left is "
        f"smaller{way}."
    )
    if missing:
        caption += f" Not drawn, for want of a finite {what} or a count: {', '.join(missing)}."
    svg = inline_svg(figure, "curve", f"{column.label} against parameters. {told}.")
    return Plot("Quality against size", caption, svg)


def set_log_scale(axis: Axis, values: Sequence[float]) -> bool:
    """A log scale where values differ by more than ten times, with ticks; whether it is one."""
    low, high = min(values), max(values)
    is_log = low > 0 and high > 10 * low
    if is_log:
        (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    set_ticks(axis, 5, tick_text)
    if is_log:
        axis.set_major_locator(
            LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5), numticks=12)
        )
        axis.set_minor_formatter(NullFormatter())
    return is_log


def _points(report: Report, column: Column) -> list[tuple[str, float, float]]:
    """Name, parameters and the number of every stage that has both."""
    numbers = ((stage, column.of(stage)) for stage in report.stages)
    return [
        (stage.name, float(stage.cost["parameters"]), float(number))
        for stage, number in numbers
        if stage.cost.get("parameters") and number is not None
    ]


def label_points(
    axes: Axes, points: Sequence[tuple[str, float, float]], text: Callable[[float], str]
) -> None:
    spots = [tuple(spot) for spot in axes.transData.transform([point[1:] for point in points])]
    texts = [f"{name if len(name) <= 24 else f'{name[:23]}…'}: {text(y)}" for name, _, y in points]
    frame = axes.get_window_extent()
    room = Bbox.from_extents(frame.x0 + 2, frame.y0 + 2, WIDTH - 4, frame.y1)
    for (_, x, y), told, (dx, dy) in zip(points, texts, place_labels(spots, texts, room)):
        leader = {  # a thin line from the near corner of the text
            "arrowstyle": "-",
            "color": BASE,
            "linewidth": 0.8,
            "relpos": (float(dx < 0), float(dy < 0)),
            "shrinkA": 0,
            "shrinkB": 3,
        }
        note = axes.annotate(
            told,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="bottom" if dy > 0 else "top",
            arrowprops=leader if abs(dy) > _HEIGHT else None,
        )
        note.set_in_layout(False)


def label_box(point: Point, offset: Point, text: str) -> Bbox:
    """The room that a text takes: it runs away from its point, to the side of the offset."""
    (x, y), (dx, dy), width = point, offset, _CHARACTER * len(text)
    return Bbox.from_bounds(x + dx - width * (dx < 0), y + dy - _HEIGHT * (dy < 0), width, _HEIGHT)


def place_labels(points: Sequence[Point], texts: Sequence[str], frame: Bbox) -> list[Point]:
    """An offset for each text, in order: the first free one, else the one with the least overlap.

    A curve joins the points in their order; labels stay inside the frame.

    Example:
        >>> place_labels([(10.0, 10.0)], ["before"], Bbox.from_extents(0, 0, 100, 100))
        [(6.0, 5.0)]
    """
    dots = [Bbox.from_extents(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    line = [
        (x0 + (x1 - x0) * i / _SAMPLES, y0 + (y1 - y0) * i / _SAMPLES)
        for (x0, y0), (x1, y1) in pairwise(points)
        for i in range(_SAMPLES + 1)
    ]
    taken: list[Bbox] = []

    def cost(box: Bbox) -> float:
        outside = max(0.0, frame.x0 - box.x0) + max(0.0, box.x1 - frame.x1)
        outside += max(0.0, frame.y0 - box.y0) + max(0.0, box.y1 - frame.y1)
        overlaps = 50 * sum(map(box.overlaps, taken)) + 20 * sum(map(box.overlaps, dots))
        return 100 * outside + overlaps + 4 * sum(box.contains(x, y) for x, y in line)

    chosen = []
    for point, text in zip(points, texts):
        boxes = {offset: label_box(point, offset, text) for offset in _OFFSETS}
        offset = min(boxes, key=lambda offset: cost(boxes[offset]))
        taken.append(boxes[offset])
        chosen.append(offset)
    return chosen


@style()
def shapes(before: Stage, after: Stage) -> Plot | None:
    """Widths of attention and MLP in every block, before and after; None without shapes."""
    if not before.shape or not after.shape or before is after:
        return None
    sources = after.source_blocks or list(range(len(after.shape)))
    places = [place for place in sources if place is not None]
    is_aligned = len(places) == len(sources) and places == sorted(set(places))
    is_aligned = is_aligned and places[-1] < len(before.shape)
    if not is_aligned:
        places = list(range(len(after.shape)))
    rows = (
        ("Attention: rows of query, key and value", _attention_width),
        ("MLP: inner width", lambda block: int(block["mlp"] or 0)),
    )
    told = []
    figure = canvas(340)
    for axes, (title, width_of) in zip(figure.subplots(len(rows), sharex=True), rows):
        old = [width_of(block) for block in before.shape]
        new = dict(zip(places, map(width_of, after.shape)))
        gone = [i for i, width in enumerate(old) if width and not new.get(i)]
        outlined = [i for i in range(len(old)) if i not in gone]
        widths = [old[i] for i in outlined]
        axes.bar(outlined, widths, width=0.8, color=LINE)
        axes.bar(list(new), list(new.values()), width=0.8, color=KEPT)
        axes.bar(outlined, widths, width=0.8, fill=False, edgecolor=BASE)
        axes.bar(gone, [old[i] for i in gone], width=0.8, **_REMOVED)
        axes.set_title(title)
        _by_layer(axes, max(len(old), *(i + 1 for i in new)), 3, "{:,.0f}".format)
        told.append(
            f"{title}: {sum(old):,} before, {sum(new.values()):,} after; removed in layers "
            f"{', '.join(map(str, gone)) or 'none'}"
        )
    after_it = Patch(facecolor=KEPT, label="after")
    before_it = Patch(facecolor=LINE, edgecolor=BASE, label="before")
    _legend(figure, after_it, before_it, Patch(label="removed", **_REMOVED))
    caption = (
        "The gray bar is the width before, the blue one in front of it the width after; a hatched "
        "part is gone as a whole."
    )
    if is_aligned:
        caption += " Layers keep the numbers they had before."
    else:
        caption += " Blocks were added or moved, so both are drawn by their own position."
    svg = inline_svg(figure, "shapes", f"Widths per layer. {'. '.join(told)}.")
    return Plot("Widths of every layer", caption, svg)


def _attention_width(block: Mapping[str, Any]) -> int:
    shape = block["attention"]
    if shape is None:
        return 0
    return int(shape["heads"] * shape["qk"] + shape["kv_heads"] * (shape["qk"] + shape["v"]))


@style()
def scores(stage: Stage, name: str) -> Plot | None:
    """What a method thought of every layer, one row per kind of part; None without scores."""
    given = stage.reasons.get("scores") or {"block": stage.reasons.get("influence")}
    gone_word = "masked" if "masked" in stage.reasons else "removed"
    removed = stage.reasons.get(gone_word)
    rows = [
        (kind, values, [int(i) for i in _numbers_of(removed, kind)])
        for kind in _KINDS
        if (values := _numbers_of(given, kind))
    ]
    if not rows:
        return None
    told = []
    figure = canvas(60 + 120 * len(rows))
    grid = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, (kind, values, gone) in zip(grid, rows):
        _score_row(axes, values, gone)
        axes.set_title(kind)
        told.append(
            f"{kind}: {', '.join('none' if v is None else f'{v:.3g}' for v in values)}; "
            f"{gone_word}: {', '.join(map(str, gone)) or 'none'}"
        )
    if any(gone for _, _, gone in rows):
        _legend(figure, Patch(facecolor=KEPT, label="kept"), Patch(label=gone_word, **_REMOVED))
    caption = "One bar per layer; a gap is a layer without a score."
    meaning = stage.reasons.get("meaning")
    if isinstance(meaning, str):
        caption = f"{meaning[:1].upper()}{meaning[1:].rstrip('.')}. {caption}"
    if any(_floor(values) for _, values, _ in rows):
        caption += " Where an axis does not start at 0, compare the tips, not the lengths."
    svg = inline_svg(figure, name, f"Scores per layer in step {stage.name}. {'. '.join(told)}.")
    return Plot(f"Scores of step {stage.name}", caption, svg)


def _score_row(axes: Axes, values: list[float | None], gone: list[int]) -> None:
    floor = _floor(values)
    for is_gone, look in ((False, {"color": KEPT}), (True, _REMOVED)):
        heights = {
            i: value - floor
            for i, value in enumerate(values)
            if value is not None and (i in gone) is is_gone
        }
        axes.bar(list(heights), list(heights.values()), bottom=floor, width=0.8, **look)
    axes.axhline(floor, color=BASE, linewidth=0.8)
    _by_layer(axes, len(values), 4, "{:.3g}".format)


def _floor(values: Sequence[float | None]) -> float:
    """Where bars start: at 0, or a little below the lowest where all values are close together."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    return low - 0.08 * (high - low) if 0 < high / 2 < low < high else 0.0


@style()
def sparsity(stage: Stage, name: str) -> Plot | None:
    """The share that a step takes from every layer; None without one."""
    values = _numbers_of(stage.reasons, "sparsity")
    if not values:
        return None
    figure = canvas(180)
    axes = figure.add_subplot()
    axes.bar(range(len(values)), [100 * (value or 0.0) for value in values], color=KEPT)
    _by_layer(axes, len(values), 4, "{:g} %".format)
    told = ", ".join("none" if value is None else share_text(value) for value in values)
    svg = inline_svg(figure, name, f"Share removed per layer in step {stage.name}: {told}.")
    caption = "The share of each layer's width that the step takes away."
    return Plot(f"Share removed per layer, step {stage.name}", caption, svg)


def training_curves(log: Sequence[Mapping[str, float]]) -> Plot | None:
    """Losses and accuracies against steps; None where nothing was logged.

    Args:
        log: entries with ``step`` and ``loss`` or ``eval_accuracy``.

    Example:
        >>> plot = training_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
        >>> plot.svg.startswith("<svg")
        True
    """
    kinds = (
        ("loss", "training loss", KEPT),
        ("eval_accuracy", "accuracy on the test images", GONE),
    )
    drawn = [kind for kind in kinds if any(kind[0] in entry for entry in log)]
    if not drawn:
        return None
    told = []
    with style():
        figure = canvas(60 + 140 * len(drawn))
        grid = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for axes, (name, title, color) in zip(grid, drawn):
            steps, values = zip(*((entry["step"], entry[name]) for entry in log if name in entry))
            axes.plot(steps, values, color=color, linewidth=1.5, marker="o", markersize=3)
            axes.set_title(title)
            axes.grid(axis="y")
            set_ticks(axes.yaxis, 4, "{:.3g}".format)
            if axes is grid[0]:
                axes.set_ylim(bottom=min(0.0, *values))
            first, last = number_text(values[0]), number_text(values[-1])
            told.append(f"{name}: {first} at first, {last} at last")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.axhline(0, color=BASE, linewidth=0.8)
        svg = inline_svg(figure, "training", f"A training by steps. {'; '.join(told)}.")
    caption = (
        "Each point of the loss is a mean over the steps since the point before. Accuracy is that "
        "of the weights that the result would have had then."
    )
    return Plot("Course of the training", caption, svg)


def _numbers_of(values: Any, key: str) -> list[Any]:
    """The entry as a list of numbers and None with at least one number, else nothing."""
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, list) or any(isinstance(v, str | list | dict | bool) for v in found):
        return []
    return found if any(value is not None for value in found) else []


def _by_layer(axes: Axes, layers: int, most: int, text: Callable[[float], str]) -> None:
    axes.set_xlim(-0.7, layers - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="y", color=LINE)
    set_ticks(axes.yaxis, most, text)
    spot = axes.get_subplotspec()
    if spot is None or spot.is_last_row():
        axes.set_xlabel("layer, counted from 0")


def set_ticks(axis: Axis, most: int, text: Callable[[float], str]) -> None:
    axis.set_major_locator(MaxNLocator(most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _legend(figure: Figure, *patches: Patch) -> None:
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
