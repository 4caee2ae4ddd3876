"""Tables and lines on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modwright.cli.console import log, output
from modwright.core.formatting import (
    format_bytes,
    format_number,
)

if TYPE_CHECKING:
    from modwright.checkpoint.export import Exported
    from modwright.edits import Plan
    from modwright.papers import Paper
    from modwright.recipes.dry_run import DryRun
    from modwright.recipes.estimate import ResourceEstimate
    from modwright.recipes.quality import Evaluation
    from modwright.recipes.run import RunResult
    from modwright.recipes.training import TrainingRunResult

__all__ = ["estimate_table", "evaluation_lines", "paper_lines", "papers_table", "plan_lines"]
__all__ += ["dry_run_lines", "serving_table", "show_export", "show_result", "show_training"]
__all__ += ["text_table"]

_bytes = partial(format_number, unit="B")


def show_result(result: RunResult) -> None:
    """The before/after table, the summary sentences in words, and how to load the result."""
    from modwright.report import summary_sentences
    from modwright.report.tables import sample_of

    report, console = result.report, output()
    console.print(_before_after(report))
    for sentence in summary_sentences(report):
        console.print(f"- {sentence}")
    for stage in (report.before, report.after):
        if (sample := sample_of(stage)) is not None:
            console.print(f"{stage.name} writes: {str(sample.get('text', '')).strip()}")
    if result.reopened is not None:
        console.print(f"checked: {result.reopened}")
    console.print(f"checkpoint and report.html: {result.output}")
    if result.log is not None:
        console.print(f"log: {result.log}", soft_wrap=True)
    auto = report.model.get("auto_class", "AutoModel")
    console.print(_load(auto, result.output, report.after.plain), soft_wrap=True)


def show_training(done: TrainingRunResult) -> None:
    """What was learned, and how to load the result."""
    losses = [entry["loss"] for entry in done.info["log"] if "loss" in entry]
    lines = [f"accuracy on test images: {100 * done.info['accuracy']:.2f} %"]
    if losses:
        lines.append(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    lines.append(f"steps: {done.info['steps']} in {done.info['seconds']:.1f} s")
    lines.append(_load(done.info["auto_class"], done.output, done.info.get("plain")))
    output().print("\n".join(lines), soft_wrap=True)


def _load(auto: str, place: Any, plain: bool | None) -> str:
    """A line to copy."""
    first = "" if plain else "import modwright; "
    return f"load: {first}from transformers import {auto}; {auto}.from_pretrained({str(place)!r})"


def text_table(
    title: str, words: Sequence[str], numbers: Sequence[str] = (), overflow: Any = "ellipsis"
) -> Table:
    """A table without rows: columns of words, and columns of numbers behind them."""
    table = Table(title=title, title_justify="left")
    for name in words:
        table.add_column(name, overflow=overflow)
    for name in numbers:
        table.add_column(name, justify="right", overflow=overflow)
    return table


def _before_after(report: Any) -> Table:
    """One row per stage. Where runs were paired, a row's speed is how many times as fast it is."""
    from modwright.metrics.registry import in_order
    from modwright.metrics.speed_words import speed_cells
    from modwright.report.columns import shown_columns

    shown = {column.group: column for column in reversed(shown_columns(report))}
    quality = [
        shown[metric.name]
        for metric in in_order()
        if metric.is_quality
        and metric.name in shown
        # what is always measured beside another stands in the sentences
        and not (metric.by_default and metric.defaults_from)
    ][:2]  # the table is narrow; the sentences and report.html have all
    labels = [column.label.partition(",")[0] for column in quality]
    labels = [label.lower() if label.istitle() else label for label in labels]
    numbers = ("parameters", "bytes", *labels, "KV bytes", "prefill tok/s", "decode tok/s")
    table = text_table(report.title, ["stage"], numbers)
    for stage in report.stages:
        counts = [stage.cost.get(key) for key in ("parameters", "stored_bytes", "kv_bytes")]
        weights, stored, cache = ("-" if n is None else f"{int(n):,}" for n in counts)
        cells = ["broken" if one.is_broken(stage) else one.cell(stage) for one in quality]
        speeds = speed_cells(report.before, stage)
        table.add_row(stage.title or stage.name, weights, stored, *cells, cache, *speeds)
    return table


def estimate_table(expected: ResourceEstimate) -> Group:
    """What a recipe would do, step by step."""
    title = f"{expected.model}: {expected.parameters:,} parameters"
    numbers = ("parameters left", "calibration tokens", "memory", "disk")
    table = text_table(title, ["step"], numbers)
    for step in expected.steps:
        low, high = step.parameters
        left = f"{high:,}" if low == high else f"{low / 1e6:.1f} M to {high / 1e6:.1f} M"
        tokens = f"{step.calibration_tokens:,}"
        table.add_row(step.title, left, tokens, _bytes(step.memory), _bytes(step.disk))
    words = (
        f"Peak memory {_bytes(expected.peak)} including weights, without Python itself; "
        f"{_bytes(expected.available)} free beside the weights. Nothing was written."
    )
    return Group(table, words if expected.fits else f"{words} That does not fit.")


def dry_run_lines(tried: DryRun) -> Group:
    """What a dry run foresees, and what it really did."""
    lines = []
    for step in tried.steps:
        found = step.calibration
        said = f"{step.title}: looks at no data"
        if found is not None:
            said = (
                f"{step.title}: ran block {found.block} ({_bytes(found.weights)} of weights, "
                f"{_bytes(found.statistics)} of statistics) on one batch of "
                f"{' x '.join(map(str, found.batch))} in {found.seconds:.2f} s on {found.device}; "
                f"the whole calibration takes about {_duration(found.layer_seconds)}"
            )
        if step.memory_estimate:
            said += f"; allocated {_bytes(step.memory_estimate)} for the plan"
        lines.append(f"- {said}")
    lines += [
        f"- saving to {tried.output}: rehearsed without weights, about "
        f"{_bytes(tried.estimate.output)}; the run takes up to {_bytes(tried.estimate.disk)} of "
        f"disk on the way, {_bytes(tried.free_disk)} are free",
        f"- this process held {_bytes(tried.peak)} at most, Python included",
    ]
    return Group(estimate_table(tried.estimate), *lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_lines(made: Plan) -> Table:
    """What one plan edits."""
    table = text_table(f"plan of {made.method}", ["where", "what will stand there"])
    for path, what in made.summary():
        table.add_row(path, what)
    return table


def show_export(done: Exported, target: str) -> None:
    """What was written, beside what the model weighs, and how it compared."""
    table = text_table(f"exported to {target}", ["file"], ["size"])
    for name in done.made:
        table.add_row(name, format_bytes(done.files[name]))
    table.add_section()
    share = done.bytes / done.checkpoint_bytes
    table.add_row("together", format_bytes(done.bytes))
    table.add_row("weights of the model", f"{format_bytes(done.checkpoint_bytes)} ({share:.2f} x)")
    output().print(table)
    log(f"checked: {done.compared}")
    if done.imports:
        log(f"it imports {', '.join(done.imports)}: install them where it is opened")
    log(f"written: {done.output}; README.md there says how it is opened")


def serving_table(name: str, found: Sequence[Any]) -> Table:
    """One row per runtime: whether it takes the model, and why not."""
    words = ("runtime", "answer", "why", "command")
    table = text_table(f"where {name} runs", words, overflow="fold")
    for entry in found:
        table.add_row(entry.runtime, entry.answer, entry.why, entry.command)
    return table


def papers_table(chosen: Sequence[Paper]) -> Table:
    """All papers, a line each."""
    works = sum(one.status == "works" for one in chosen)
    words = ("slug", "status", "arXiv", "what it does")
    table = text_table(f"{len(chosen)} papers, {works} work", words, overflow="fold")
    for one in chosen:
        table.add_row(one.slug, one.status, one.arxiv, one.summary)
    return table


def paper_lines(one: Paper) -> Group:
    """One record in full."""
    lines = [Text(one.title, style="bold")]
    for name, value in one.to_dict().items():
        if name != "title" and value not in (None, [], ""):
            shown = ", ".join(value) if isinstance(value, list) else value
            lines.append(Text(f"{name}: {shown}"))
    return Group(*lines)


def evaluation_lines(found: Evaluation) -> Group:
    """All numbers with their recipes; a table of both models where there are two."""
    from modwright.metrics.registry import in_order

    lines: list[Any] = [] if found.against is None else [_both(found, found.against)]
    lines += [f"{name} is not measured: it {why}" for name, why in found.left_out.items()]
    for metric in in_order():
        if (values := found.measured.get(metric.name)) is not None:
            lines += metric.lines(values)
            lines += [_recipe(recipe)] if (recipe := values.get("recipe")) else []
    return Group(*lines)


def _both(found: Evaluation, against: Evaluation) -> Table:
    """One row per number: the original's, the model's, and the change."""
    from modwright.core.formatting import MISSING
    from modwright.metrics.registry import in_order
    from modwright.report import Stage

    table = Table("")
    for name in (against.model, found.model, "change"):
        table.add_column(name, justify="right", overflow="fold")
    before = Stage("before", measured=dict(against.measured))
    after = Stage("after", "eval", measured=dict(found.measured))
    for metric in in_order():
        for column in metric.columns_of([before, after]):
            cells = ["" if (cell := column.cell(s)) == MISSING else cell for s in (before, after)]
            if cells[1]:
                start = f"{column.label} to {against.model}" if metric.compares else column.label
                table.add_row(start, *cells, column.change_cell(before, after))
    return table


def _recipe(recipe: Mapping[str, Any]) -> str:
    from modwright.report.tables import flat

    return "  " + ", ".join(f"{name} {value}" for name, value in flat(recipe).items())
