"""The report as plain Markdown, with the tables and sentences of the web page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from modwright.core.formatting import bytes_text, seconds_text, share_text
from modwright.report.columns import shown_metrics
from modwright.report.data import Report, Stage
from modwright.report.scores import score_table
from modwright.report.serving import HEADS, serving_rows
from modwright.report.summary import RULES, summary_sentences
from modwright.report.tables import (
    flat,
    format_value,
    layer_cell,
    measured,
    other_reasons,
    per_layer,
    recipe_yaml,
    samples,
    subtitle,
)

__all__ = [
    "bullets",
    "fenced",
    "inline",
    "render_markdown",
    "runtime_support",
    "stage_table",
    "table",
]

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def render_markdown(report: Report) -> str:
    """The whole report as GitHub Markdown.

    Example:
        >>> render_markdown(Report("example", stages=[Stage("before")])).splitlines()[0]
        '# example'
    """
    parts = [
        f"# {inline(report.title)}",
        inline(subtitle(report)),
        bullets(summary_sentences(report)),
    ]
    parts += ["## Before, after, and every step between", stage_table(report)]
    parts.append("In brackets: the change against the model as it came.")
    parts.append(bullets(f"{m.label}: {m.meaning}" for m in shown_metrics(report)))
    parts += _scores(report)
    parts += _samples(report)
    for before, stage in zip(report.stages, report.stages[1:]):
        parts += _step(before, stage)
    if report.after.servable:
        parts += ["## Where the result runs", runtime_support(report.after)]
    parts.append("## How it was measured")
    for entry in measured(report):
        only = f": {', '.join(entry.stages)}" if entry.stages else ""
        parts += [f"### {inline(entry.title + only)}", _pairs(entry.recipe, "Entry")]
    for title, values in (("Machine", flat(report.environment)), ("Versions", report.versions)):
        if values:
            parts += [f"### {title}", _pairs(values, "Entry")]
    parts += ["### When words are used", bullets(f"“{word}”: {rule}" for word, rule in RULES)]
    parts.append("## How to make it again")
    if report.reproduce:
        parts.append(fenced(report.reproduce, "bash"))
    if report.recipe:
        parts += ["The resolved recipe:", fenced(recipe_yaml(report), "yaml")]
    if report.files:
        sizes = {name: bytes_text(size) for name, size in report.files.items()}
        parts += ["### Files", _pairs(sizes, "File", "Size")]
    return "\n\n".join(part for part in parts if part) + "\n"


def stage_table(report: Report, stages: Sequence[Stage] | None = None) -> str:
    """The before/after table; ``stages`` limits its rows."""
    metrics = shown_metrics(report)
    rows = []
    for stage in report.stages if stages is None else stages:
        title = f": {stage.title}" if stage.title else ""
        row = [inline(f"{stage.name}{title}")]
        for metric in metrics:
            change = metric.change_cell(report.before, stage)
            row.append(f"{metric.cell(stage)}{f' ({change})' if change else ''}")
        rows.append(row)
    return table(["Stage", *(inline(metric.label) for metric in metrics)], rows)


def runtime_support(stage: Stage) -> str:
    """Where a model runs, one row per runtime."""
    rows = [[inline(cell) for cell in row] for row in serving_rows(stage)]
    lines = [HEADS, [":---"] * len(HEADS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; columns after the first are right-aligned."""
    lines = [heads, [":---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inline(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is; code between backticks stays code.

    Example:
        >>> inline("<b>*x*</b> and `import x`")
        '&lt;b&gt;\\\\*x\\\\*&lt;/b&gt; and `import x`'
    """
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0 or any("|" in code or not code for code in parts[1::2]):
        return _escaped("`".join(parts))
    return "`".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def fenced(text: str, language: str = "") -> str:
    """Any text as a code block, with a fence longer than any in the text.

    Example:
        >>> fenced("x = 1", "python").splitlines()
        ['```python', 'x = 1', '```']
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def bullets(lines: Iterable[str]) -> str:
    """A list with one entry per line of plain text."""
    return "\n".join(f"- {inline(line)}" for line in lines)


def _pairs(values: Mapping[str, str], head: str, other: str = "Value") -> str:
    rows = [f"| {inline(name)} | {inline(text)} |" for name, text in values.items()]
    return "\n".join([f"| {head} | {other} |", "| :--- | :--- |", *rows])


def _scores(report: Report) -> list[str]:
    found = score_table(report)
    if found is None:
        return []
    rows = [[inline(cell) for cell in row] for row in found.rows]
    return [
        "## Harness scores",
        f"As {inline(found.harness)} gives them, with one standard error.",
        table([inline(head) for head in found.heads], rows),
    ]


def _samples(report: Report) -> list[str]:
    parts = []
    for when, sample in samples(report):
        parts += [
            f"### Sample {inline(when)}",
            f"Prompt: {inline(sample.get('prompt', ''))}",
            fenced(sample.get("text", ""), "text"),
        ]
        share = sample.get("repetition")
        if share is not None:
            parts.append(
                f"Repetition: {share_text(share)} of its four-word runs occur earlier in the same "
                "text."
            )
    return ["## What it writes", *parts] if parts else []


def _step(before: Stage, stage: Stage) -> list[str]:
    title = f": {stage.title}" if stage.title else ""
    parts = [f"## Step {inline(f'{stage.name}{title}')}", bullets(stage.notes)]
    if stage.accounting:
        counts = ", ".join(f"{number} {word}" for word, number in stage.accounting.items())
        parts.append(f"Tensors: {inline(counts)}.")
    if stage.seconds:
        times = ", ".join(f"{phase} {seconds_text(s)}" for phase, s in stage.seconds.items())
        parts.append(f"Time: {inline(times)}.")
    if stage.options:
        parts.append(
            _pairs({name: format_value(value) for name, value in stage.options.items()}, "Option")
        )
    layers = per_layer(stage.reasons, len(before.shape))
    if layers:
        rows = [
            [str(at), *(inline(layer_cell(value)) for value in row)]
            for at, row in enumerate(zip(*layers.values()))
        ]
        parts.append(table(["Layer", *map(inline, layers)], rows))
    rest = other_reasons(stage.reasons, layers)
    if rest:
        parts.append(_pairs(rest, "Reason"))
    return parts
