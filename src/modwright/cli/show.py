"""Tables and lines on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from modwright.edits import Plan
    from modwright.papers import Paper
    from modwright.recipes.forecast import Forecast
    from modwright.recipes.rehearsal import Rehearsal
    from modwright.recipes.run import RunResult

__all__ = [
    "forecast_table",
    "paper_lines",
    "papers_table",
    "plan_lines",
    "rehearsal_lines",
    "show_result",
]


def show_result(console: Console, result: RunResult) -> None:
    """The before/after table, the summary sentences in words, and how to load the result."""
    from modwright.report import summary_sentences

    report = result.report
    console.print(before_after(report))
    for sentence in summary_sentences(report):
        console.print(Text(f"- {sentence}"))
    for stage in (report.before, report.after):
        if stage.sample is not None:
            console.print(Text(f"{stage.name} writes: {stage.sample['text'].strip()}"))
    if result.reopened is not None:
        console.print(Text(f"checked: {result.reopened}"))
    console.print(Text(f"checkpoint and report.html: {result.output}"))
    if result.log is not None:
        console.print(Text(f"log: {result.log}"), soft_wrap=True)
    first = "" if report.after.plain else "import modwright; "
    auto = report.model.get("auto_class", "AutoModel")
    console.print(
        Text(
            f"load: {first}from transformers import {auto}; "
            f"{auto}.from_pretrained({str(result.output)!r})"
        ),
        soft_wrap=True,  # a line to copy
    )


def before_after(report: Any) -> Table:
    """One row per stage. Where runs were paired, a row's speed is how many times as fast it is."""
    from modwright.report.speeds import speed_cells

    table = Table(title=report.title, title_justify="left")
    table.add_column("stage")
    for name in ("parameters", "bytes", "perplexity", "KV bytes", "prefill tok/s", "decode tok/s"):
        table.add_column(name, justify="right")
    for stage in report.stages:
        table.add_row(
            stage.title or stage.name,
            _count(stage.cost.get("parameters")),
            _count(stage.cost.get("stored_bytes")),
            "broken" if stage.is_broken else _number(stage.perplexity),
            _count(stage.cost.get("kv_bytes")),
            *speed_cells(report.before, stage),
        )
    return table


def _count(value: Any) -> str:
    return "-" if value is None else f"{int(value):,}"


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def forecast_table(expected: Forecast) -> Group:
    """What a recipe would do, step by step."""
    from modwright.cost import format_number

    table = Table(
        title=f"{expected.model}: {expected.parameters:,} parameters", title_justify="left"
    )
    table.add_column("step")
    for name in ("parameters left", "calibration tokens", "memory", "disk"):
        table.add_column(name, justify="right")
    for step in expected.steps:
        low, high = step.parameters
        left = f"{high:,}" if low == high else f"{low / 1e6:.1f} M to {high / 1e6:.1f} M"
        table.add_row(
            step.title,
            left,
            f"{step.calibration_tokens:,}",
            format_number(step.memory, "B"),
            format_number(step.disk, "B"),
        )
    words = (
        f"Most memory: {format_number(expected.peak, 'B')} with the weights, beside Python itself; "
        f"{format_number(expected.available, 'B')} are free beside the weights. "
        "Nothing was written."
    )
    if not expected.fits:
        words += " That does not fit."
    return Group(table, Text(words))


def rehearsal_lines(tried: Rehearsal) -> Group:
    """What a dry run foresees, and what it really did."""
    from modwright.cost import format_number

    lines: list[Table | Text | Group] = [forecast_table(tried.forecast)]
    for step in tried.steps:
        found = step.calibration
        said = f"{step.title}: looks at no data"
        if found is not None:
            shape = " x ".join(map(str, found.batch))
            said = (
                f"{step.title}: ran block {found.block} "
                f"({format_number(found.weights, 'B')} of weights, "
                f"{format_number(found.statistics, 'B')} of statistics) on one batch of {shape} in "
                f"{found.seconds:.2f} s on {found.device}; the whole calibration takes about "
                f"{_duration(found.layer_seconds)}"
            )
        if step.memory_estimate:
            said += f"; allocated {format_number(step.memory_estimate, 'B')} for the plan"
        lines.append(Text(f"- {said}"))
    lines.append(
        Text(
            f"- saving to {tried.output}: rehearsed without weights, about "
            f"{format_number(tried.forecast.output, 'B')}; the run takes up to "
            f"{format_number(tried.forecast.disk, 'B')} of disk on the way, "
            f"{format_number(tried.free_disk, 'B')} are free"
        )
    )
    lines.append(
        Text(f"- this process held {format_number(tried.peak, 'B')} at most, Python included")
    )
    return Group(*lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_lines(made: Plan) -> Table:
    """What one plan edits."""
    table = Table(title=f"plan of {made.method}", title_justify="left")
    table.add_column("where")
    table.add_column("what will stand there")
    for path, what in made.summary():
        table.add_row(path, what)
    return table


def papers_table(chosen: Sequence[Paper]) -> Table:
    """All papers, a line each."""
    works = sum(one.status == "works" for one in chosen)
    table = Table(title=f"{len(chosen)} papers, {works} work", title_justify="left")
    for name in ("slug", "status", "arXiv", "what it does"):
        table.add_column(name, overflow="fold")
    for one in chosen:
        table.add_row(one.slug, one.status, one.arxiv, one.summary)
    return table


def paper_lines(one: Paper) -> Group:
    """One record in full."""
    lines = [Text(one.title, style="bold")]
    for name, value in one.to_dict().items():
        if name == "title" or value in (None, [], ""):
            continue
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        lines.append(Text(f"{name}: {shown}"))
    return Group(*lines)
