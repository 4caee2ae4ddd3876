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
    from modwright.recipes.run import Outcome

__all__ = [
    "forecast_table",
    "paper_lines",
    "papers_table",
    "perplexity_lines",
    "plan_lines",
    "show_outcome",
]


def show_outcome(console: Console, outcome: Outcome) -> None:
    """The before/after table, the verdicts in words, and how to load the result."""
    from modwright.report import verdicts

    report = outcome.report
    console.print(before_after(report))
    for sentence in verdicts(report):
        console.print(Text(f"- {sentence}"))
    for stage in (report.before, report.after):
        if stage.sample is not None:
            console.print(Text(f"{stage.name} writes: {stage.sample['text'].strip()}"))
    if outcome.reopened is not None:
        console.print(Text(f"checked: {outcome.reopened}"))
    console.print(Text(f"checkpoint and report.html: {outcome.output}"))
    first = "" if report.after.plain else "import modwright; "
    auto = report.model.get("auto_class", "AutoModel")
    console.print(
        Text(
            f"load: {first}from transformers import {auto}; "
            f"{auto}.from_pretrained({str(outcome.output)!r})"
        ),
        soft_wrap=True,  # a line to copy
    )


def before_after(report: Any) -> Table:
    """One row per stage."""
    table = Table(title=report.title, title_justify="left")
    table.add_column("stage")
    for name in ("parameters", "bytes", "perplexity", "KV bytes", "prefill tok/s", "decode tok/s"):
        table.add_column(name, justify="right")
    for stage in report.stages:
        speed = stage.speed or {}
        table.add_row(
            stage.title or stage.name,
            _count(stage.cost.get("parameters")),
            _count(stage.cost.get("stored_bytes")),
            "broken" if stage.is_broken else _number(stage.perplexity),
            _count(stage.cost.get("kv_bytes")),
            _number(speed.get("prefill_tokens_per_second"), 0),
            _number(speed.get("decode_tokens_per_second"), 1),
        )
    return table


def _count(value: Any) -> str:
    return "-" if value is None else f"{int(value):,}"


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def forecast_table(expected: Forecast) -> Group:
    """What a recipe would do, step by step."""
    from modwright.cost import human

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
            human(step.memory, "B"),
            human(step.disk, "B"),
        )
    words = (
        f"Most memory: {human(expected.peak, 'B')} with the weights, beside Python itself; "
        f"{human(expected.available, 'B')} are free beside the weights. Nothing was written."
    )
    if not expected.fits:
        words += " That does not fit."
    return Group(table, Text(words))


def plan_lines(made: Plan) -> Table:
    """What one plan edits."""
    table = Table(title=f"plan of {made.method}", title_justify="left")
    table.add_column("where")
    table.add_column("what will stand there")
    for path, what in made.summary():
        table.add_row(path, what)
    return table


def perplexity_lines(found: Any, sample: Any = None) -> Group:
    """The number and its recipe."""
    recipe = found.recipe
    lines = [
        Text(f"perplexity {found.value:.4f} per token over {found.tokens:,} tokens"),
        Text(f"  {found.bits_per_byte:.4f} bits per byte; {found.word_perplexity:,.1f} per word"),
        Text("  " + ", ".join(f"{name} {value}" for name, value in recipe.items())),
    ]
    if sample is not None:
        lines.append(Text(f"after {sample.prompt!r}: {sample.text.strip()}"))
    return Group(*lines)


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
    for name, value in one.to_json().items():
        if name == "title" or value in (None, [], ""):
            continue
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        lines.append(Text(f"{name}: {shown}"))
    return Group(*lines)
