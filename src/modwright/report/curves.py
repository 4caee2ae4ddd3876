"""The course of a training as inline SVG: losses, and accuracy where it was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from modwright.core.formatting import number_text
from modwright.report.plots import Plot
from modwright.report.svg import BASE, GONE, KEPT, canvas, inline_svg, style

__all__ = ["training_curves"]


def training_curves(log: Sequence[Mapping[str, float]]) -> Plot | None:
    """Losses and accuracies against steps; None where nothing was logged.

    Args:
        log: entries with ``step`` and ``loss`` or ``accuracy``.

    Example:
        >>> plot = training_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
        >>> plot.svg.startswith("<svg")
        True
    """
    rows = [
        ("loss", [(e["step"], e["loss"]) for e in log if "loss" in e], KEPT),
        ("accuracy", [(e["step"], e["accuracy"]) for e in log if "accuracy" in e], GONE),
    ]
    drawn = [row for row in rows if row[1]]
    if not drawn:
        return None
    told = []
    with style():
        figure = canvas(60 + 140 * len(drawn))
        grid = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for axes, (name, points, color) in zip(grid, drawn):
            axes.plot(*zip(*points), color=color, linewidth=1.5, marker="o", markersize=3)
            axes.set_title("training loss" if name == "loss" else "accuracy on the test images")
            axes.grid(axis="y")
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
            first, last = points[0][1], points[-1][1]
            told.append(f"{name}: {number_text(first)} at first, {number_text(last)} at last")
        grid[0].set_ylim(bottom=min(0.0, *(y for _, y in drawn[0][1])))
        grid[-1].set_xlabel("step")
        grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        grid[-1].axhline(0, color=BASE, linewidth=0.8)
        svg = inline_svg(figure, "training", f"A training by steps. {'; '.join(told)}.")
    caption = (
        "Each point of the loss is a mean over the steps since the point before. Accuracy is that "
        "of the weights that the result would have had then."
    )
    return Plot("Course of the training", caption, svg)
