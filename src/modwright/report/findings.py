"""What an analysis found, on disk: numbers as JSON, a page, and every figure as SVG and PNG."""

from __future__ import annotations

import io
import json
from pathlib import Path

from cycler import cycler
from matplotlib import rc_context

from modwright.analysis import ANALYSES, Chart, Finding
from modwright.core.errors import InvalidInputError
from modwright.core.files import whole_directory, write_file
from modwright.edits import Plan
from modwright.report.document import Block, Cell, Table
from modwright.report.pages import html_page
from modwright.report.plots import Plot
from modwright.report.svg import GONE, INK, KEPT, LINE, canvas, inline_svg, style
from modwright.report.tables import flat

__all__ = ["draw", "finding_sentence", "write_finding"]

_LEDE = (
    "What was found inside a model, beside what would be found if there were nothing to find. The "
    "model is as it was. How it was measured stands further down."
)
_LEGEND = 6
"""More lines than this are not named one by one."""


def finding_sentence(found: Finding) -> str:
    """The number beside its null, and which of the two is larger."""
    kind = ANALYSES[found.recipe["analysis"]]
    how = "above" if found.found else "not above"
    said = f"{kind.value} is {found.value:.4g}, {how} its null, {found.null:.4g}"
    return f"{said[:1].upper()}{said[1:]} ({kind.null})."


def draw(chart: Chart, name: str) -> tuple[Plot, bytes]:
    """A figure as it stands in a page, and as a PNG; ``name`` distinguishes those of one page."""
    with style(), rc_context({"axes.prop_cycle": cycler(color=[KEPT, GONE, INK])}):
        figure = canvas(240)
        axes = figure.add_subplot()
        chart.draw(axes)
        axes.grid(axis="y", color=LINE)
        labels = axes.get_legend_handles_labels()
        if 1 < len(labels[1]) <= _LEGEND:
            figure.legend(*labels, loc="outside upper center", ncols=3, frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=144, facecolor="white")
        svg = inline_svg(figure, name, f"{chart.title}. {chart.caption}")
    return Plot(chart.title, chart.caption, svg), stream.getvalue()


def write_finding(
    found: Finding, directory: Path, plan: Plan | None = None, *, force: bool = False
) -> list[str]:
    """Writes a directory: finding.json, report.html, figure-N.svg and .png, and perhaps a plan.

    Gives the names of what was written.

    Raises:
        CheckpointError: something stands there already, or nothing can be written.
    """
    try:
        stored = json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n"
    except ValueError:
        raise InvalidInputError(
            f"{found.recipe['analysis']}: a number of the finding is not finite"
        ) from None
    drawn = [draw(chart, f"figure-{n}") for n, chart in enumerate(found.charts(), start=1)]
    rows = [[Cell(key), Cell(text)] for key, text in flat(found.recipe).items()]
    how = Table("How it was measured", ("Entry", "Value"), rows, numbers=False)
    told = [Block("text", finding_sentence(found))]
    told += [Block("code", "\n".join(found.lines()), "text")] if found.lines() else []
    sections = [Block("section", told, "In short", "headline")]
    if drawn:
        figures = [Block("figures", [plot for plot, _ in drawn])]
        sections.append(Block("section", figures, "Figures", "plots"))
    sections.append(Block("section", [Block("table", how)], "How it was measured", "measured"))
    title = f"{found.recipe['analysis']} of {found.recipe['subject']}"
    with whole_directory(directory, force=force) as folder:
        write_file(folder / "finding.json", stored)
        page = html_page(title, "an analysis by modwright", sections, "analysis", _LEDE)
        write_file(folder / "report.html", page)
        for number, (plot, png) in enumerate(drawn, start=1):
            write_file(folder / f"figure-{number}.svg", plot.svg)
            write_file(folder / f"figure-{number}.png", png)
        if plan is not None:
            plan.save(folder / "plan")
        return sorted(file.name for file in folder.iterdir())
