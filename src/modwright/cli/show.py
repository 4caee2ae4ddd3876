"""Tables and lines on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modwright.cli.console import log, output
from modwright.core.formatting import (
    difference_text,
    format_bytes,
    format_number,
    nats_text,
    score_text,
)

if TYPE_CHECKING:
    from modwright.checkpoint.export import Exported
    from modwright.edits import Plan
    from modwright.metrics.lm_eval import Score
    from modwright.papers import Paper
    from modwright.recipes.dry_run import DryRun
    from modwright.recipes.estimate import ResourceEstimate
    from modwright.recipes.quality import Evaluation
    from modwright.recipes.run import RunResult
    from modwright.recipes.training import TrainingRunResult

__all__ = ["estimate_table", "evaluation_lines", "paper_lines", "papers_table", "plan_lines"]
__all__ += ["dry_run_lines", "serving_table", "show_export", "show_result", "show_training"]

_bytes = partial(format_number, unit="B")


def show_result(result: RunResult) -> None:
    """The before/after table, the summary sentences in words, and how to load the result."""
    from modwright.report import summary_sentences

    report, console = result.report, output()
    console.print(_before_after(report))
    for sentence in summary_sentences(report):
        console.print(f"- {sentence}")
    for stage in (report.before, report.after):
        if stage.sample is not None:
            console.print(f"{stage.name} writes: {stage.sample['text'].strip()}")
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


def _table(
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
    from modwright.report.speeds import speed_cells

    numbers = ("parameters", "bytes", "perplexity", "KV bytes", "prefill tok/s", "decode tok/s")
    table = _table(report.title, ["stage"], numbers)
    for stage in report.stages:
        counts = [stage.cost.get(key) for key in ("parameters", "stored_bytes", "kv_bytes")]
        weights, stored, cache = ("-" if n is None else f"{int(n):,}" for n in counts)
        quality = "-" if stage.perplexity is None else f"{stage.perplexity:,.2f}"
        quality = "broken" if stage.is_broken else quality
        speeds = speed_cells(report.before, stage)
        table.add_row(stage.title or stage.name, weights, stored, quality, cache, *speeds)
    return table


def estimate_table(expected: ResourceEstimate) -> Group:
    """What a recipe would do, step by step."""
    title = f"{expected.model}: {expected.parameters:,} parameters"
    numbers = ("parameters left", "calibration tokens", "memory", "disk")
    table = _table(title, ["step"], numbers)
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
    table = _table(f"plan of {made.method}", ["where", "what will stand there"])
    for path, what in made.summary():
        table.add_row(path, what)
    return table


def show_export(done: Exported, target: str) -> None:
    """What was written, beside what the model weighs, and how it compared."""
    table = _table(f"exported to {target}", ["file"], ["size"])
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
    table = _table(f"where {name} runs", words, overflow="fold")
    for entry in found:
        table.add_row(entry.runtime, entry.answer, entry.why, entry.command)
    return table


def papers_table(chosen: Sequence[Paper]) -> Table:
    """All papers, a line each."""
    works = sum(one.status == "works" for one in chosen)
    words = ("slug", "status", "arXiv", "what it does")
    table = _table(f"{len(chosen)} papers, {works} work", words, overflow="fold")
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


def evaluation_lines(found: Evaluation, sample: Any = None) -> Group:
    """All numbers with their recipes; a table of both models where there are two."""
    lines: list[Any] = []
    if found.against is not None:
        lines.append(_both(found, found.against))
    if found.perplexity is not None:
        number = found.perplexity
        lines += [
            f"perplexity {number.value:.4f} per token over {number.tokens:,} tokens",
            f"  {number.bits_per_byte:.4f} bits per byte; {number.word_perplexity:,.1f} per word",
            _recipe(number.recipe),
        ]
    elif found.agreement is not None:
        lines.append(f"no perplexity: {found.model} is no causal language model")
    if found.agreement is not None:
        near = found.agreement
        lines.append(f"agreement over {near.tokens:,} tokens: {', '.join(_near(near))}")
        lines.append(_recipe(near.recipe))
    if found.harness is not None:
        lines += [*map(_said, found.harness.scores), _recipe(found.harness.recipe)]
    if sample is not None:
        lines.append(f"after {sample.prompt!r}: {sample.text.strip()}")
    return Group(*lines)


def _near(near: Any) -> Iterator[str]:
    if near.kl is not None:
        yield f"KL {nats_text(near.kl)} nats per token"
    if near.top1 is not None:
        yield f"top-1 {100 * near.top1:.1f} %"
    if near.cosine is not None:
        yield f"cosine {score_text(near.cosine)}"


def _said(score: Score) -> str:
    shots = "" if score.num_fewshot is None else f"{score.num_fewshot}-shot, "
    said = f"{score.harness}, version {score.version}, {shots}{score.documents:,} documents"
    return f"{'' if score.asked else '  '}{score.name} {_value(score)} ({said})"


def _value(score: Score) -> str:
    if score.value is None:
        return "not finite"
    error = "" if score.stderr is None else f" ± {score_text(score.stderr)}"
    return f"{score_text(score.value)}{error}"


def _both(found: Evaluation, against: Evaluation) -> Table:
    """One row per number: the original's, the model's, and the change."""
    table = Table("")
    for name in (against.model, found.model, "change"):
        table.add_column(name, justify="right", overflow="fold")
    if found.perplexity is not None and against.perplexity is not None:
        one, two = against.perplexity.value, found.perplexity.value
        known = math.isfinite(one) and math.isfinite(two)
        change = f"× {two / one:.3f}" if known else "-"
        table.add_row("perplexity per token", f"{one:.2f}", f"{two:.2f}", change)
    for words in _near(found.agreement):
        name, _, value = words.partition(" ")
        table.add_row(f"{name} to {against.model}", "", value, "")
    earlier = {score.name: score for score in (against.harness.scores if against.harness else ())}
    for score in found.harness.scores if found.harness else ():
        first, change = earlier[score.name], "-"
        if score.value is not None and first.value is not None:
            change = difference_text(score.value - first.value)
        table.add_row(score.name, _value(first), _value(score), change)
    return table


def _recipe(recipe: Mapping[str, Any]) -> str:
    from modwright.report.tables import flat

    return "  " + ", ".join(f"{name} {value}" for name, value in flat(recipe).items())
