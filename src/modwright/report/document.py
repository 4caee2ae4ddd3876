"""What the pages of a report say, once: sections of blocks, which HTML and Markdown render."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

from modwright.core.formatting import (
    MISSING,
    bytes_text,
    counted_text,
    seconds_text,
    share_text,
)
from modwright.metrics.registry import in_order
from modwright.report.columns import all_columns, shown_columns
from modwright.report.data import Report, Stage
from modwright.report.summary import summary_rules, summary_sentences
from modwright.report.tables import (
    SERVING_HEADS,
    by_layer,
    flat,
    format_value,
    grids,
    measured,
    sample_of,
    samples,
    serving_rows,
)

__all__ = ["Block", "Cell", "Table", "recipe_block", "sections", "serving_blocks", "stage_table"]
__all__ += ["subtitle"]


@dataclass(frozen=True)
class Block:
    """One piece of a page. Text between backticks is code.

    Attributes:
        kind: "text", "note" (a soft text), "bullets", "terms" (words and meanings), "table",
            "code", "sample" (a text in which lines matter), and for the web page alone "figures"
            and "cards"; with blocks inside: "section", "part" and "fold" (opened by a click).
        body: the text, the lines, the pairs, the table or the blocks inside.
        title: heading; of a text the bold words before it; of a code its language.
        aside: beside the heading; of a section its id, by which the web page lays it out.
    """

    kind: str
    body: Any
    title: str = ""
    aside: str = ""


class Cell(NamedTuple):
    """A cell of a table: what it says, a change or a title in small print, and what sorts it."""

    text: str
    note: str = ""
    value: Any = None


class Table(NamedTuple):
    """Rows of cells. The first column names them, the others hold numbers or texts."""

    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: bool = True
    sortable: bool = False


def _table(label: str, heads: Sequence[str], rows: Iterable[Iterable[str]], **how: bool) -> Block:
    return Block("table", Table(label, heads, [[Cell(c) for c in row] for row in rows], **how))


def _pairs(
    title: str, values: Mapping[str, str], heads: Sequence[str] = ("Entry", "Value")
) -> list[Block]:
    """A part with names and texts, where there are any."""
    table = _table(title, heads, values.items(), numbers=False)
    return [Block("part", [table], title)] if values else []


def sections(report: Report, figures: Sequence[Any] = ()) -> list[Block]:
    """The whole report below its title; ``figures`` are drawn ones, for the web page."""
    again = [Block("code", report.reproduce, "bash")] if report.reproduce else []
    if report.recipe:
        again.append(Block("fold", [recipe_block(report)], "The resolved recipe"))
    sizes = {name: bytes_text(size) for name, size in report.files.items()}
    again += _pairs("Model", flat(report.model)) + _pairs("Files", sizes, ("File", "Size"))
    meanings = [(m.label, m.meaning or m.label) for m in shown_columns(report)]
    meaning = Block("fold", [Block("terms", meanings)], "What the columns mean")
    table = [stage_table(report, report.stages), meaning]
    found = (
        ("headline", "In short", _headline(report)),
        ("table", "Results by step", table),
        *_tables(report),
        ("plots", "Figures", [Block("figures", figures)] if figures else []),
        ("samples", "Sample output", _samples(report)),
        ("steps", "Step by step", _steps(report)),
        ("servable", "Supported runtimes", serving_blocks(report.after)),
        ("measured", "How it was measured", _measured(report)),
        ("again", "How to make it again", again),
    )
    return [Block("section", blocks, title, name) for name, title, blocks in found if blocks]


def subtitle(report: Report) -> str:
    """Model, family, number of steps and date, as far as the report has them.

    Example:
        >>> subtitle(Report("r", {"name": "small", "family": "llama"}, stages=[Stage("before")]))
        'small (llama), 0 steps'
    """
    name, family = report.model.get("name"), report.model.get("family")
    model = f"{name} ({family})" if name and family else name
    said = [model, counted_text(len(report.stages) - 1, "step"), report.created]
    return ", ".join(str(word) for word in said if word)


def recipe_block(report: Report) -> Block:
    """The resolved recipe as YAML, in its own order."""
    text = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True, width=88)
    return Block("code", text.rstrip(), "yaml")


def _headline(report: Report) -> list[Block]:
    before, after = report.before, report.after
    shown = shown_columns(report)
    quality = {metric.name for metric in in_order() if metric.is_quality}
    says_quality = any(column.group in quality for column in shown)
    cards = []
    against = []
    for column in all_columns(report):
        is_quality = column.group in quality
        better = "lower" if column.lower_is_better else "higher"
        hint = f"{better} is better" if is_quality and column.lower_is_better is not None else ""
        if column.headline == "against" and column in shown:
            against.append((column, after, after, "with the baseline"))
        elif (column.headline == "measured" and column in shown) or (
            column.headline == "always"
            and (column in shown or not is_quality or not says_quality)
            and column.has_headline(before, after)
        ):
            cards.append((column, before, after, hint))
    cards += against
    return [
        Block("cards", cards),
        Block("bullets", summary_sentences(report)),
        Block("fold", [Block("terms", summary_rules())], "How these statements are chosen"),
    ]


def stage_table(report: Report, stages: Sequence[Stage]) -> Block:
    """The before/after table; ``stages`` are its rows."""
    metrics = shown_columns(report)
    rows = []
    for at, stage in enumerate(stages):
        cells = [
            Cell(metric.cell(stage), metric.change_cell(report.before, stage), metric.of(stage))
            for metric in metrics
        ]
        rows.append([Cell(stage.name, stage.title, at), *cells])
    heads = ["Stage", *(metric.label for metric in metrics)]
    return Block("table", Table("Stages", heads, rows, sortable=True))


def _tables(report: Report) -> list[tuple[str, str, list[Block]]]:
    """A section for every metric that has a table of its own."""
    found = []
    for metric in in_order():
        if (made := metric.table(report.stages)) is not None:
            blocks = [Block("note", made.note), _table(metric.title, made.heads, made.rows)]
            found.append((f"scores-{metric.name}", metric.title, blocks))
    return found


def _samples(report: Report) -> list[Block]:
    parts = []
    for when, sample in samples(report):
        count = len(sample.get("samples") or ())
        aside = f" (of {count} prompts, the one whose answer repeats itself most)" if count else ""
        blocks = [
            Block("note", f"Prompt: “{sample.get('prompt', '')}”{aside}"),
            Block("sample", sample.get("text", "")),
        ]
        if (share := sample.get("repetition")) is not None:
            blocks.append(Block("note", f"Repeated 4-grams: {share_text(share)}."))
        parts.append(Block("part", blocks, when[0].upper() + when[1:]))
    return parts


def _steps(report: Report) -> list[Block]:
    found = []
    for before, stage in pairwise(report.stages):
        found += [Block("text", note, stage.name) for note in stage.notes]
        title = f"{stage.name}: {stage.title}" if stage.title else stage.name
        aside = f"({seconds_text(sum(stage.seconds.values()))})" if stage.seconds else ""
        is_last = stage is report.after
        found.append(Block("fold", _step(before, stage, is_last), title, aside))
    return found


def _step(before: Stage, stage: Stage, is_last: bool) -> list[Block]:
    blocks = []
    if stage.accounting:
        counts = ", ".join(f"{number} {word}" for word, number in stage.accounting.items())
        blocks.append(Block("text", f"Tensors of the model: {counts}."))
    if stage.plain:
        blocks.append(Block("text", "Stock transformers loads the model after this step."))
    else:
        blocks.append(Block("text", "The model after this step loads after `import modwright`."))
    options = {name: format_value(value) for name, value in stage.options.items()}
    blocks += _pairs(f"Options of {stage.method}", options, ("Option", "Value"))
    if stage.seconds:
        times = ", ".join(f"{phase} {seconds_text(s)}" for phase, s in stage.seconds.items())
        blocks.append(Block("part", [Block("text", f"{times}.")], "Time"))
    tables, others = grids(stage.reasons)
    for name, given in tables.items():
        heads = ["", *(key.replace("_", " ") for key in next(iter(given.values())))]
        cells = [[row, *map(format_value, values.values())] for row, values in given.items()]
        title = name[0].upper() + name[1:].replace("_", " ")
        blocks.append(Block("part", [_table(f"{stage.name}: {name}", heads, cells)], title))
    layers, rest = by_layer(others, len(before.shape))
    if layers:
        rows = [
            [str(at), *(MISSING if value is None else format_value(value) for value in row)]
            for at, row in enumerate(zip(*layers.values()))
        ]
        table = _table(f"Layers in {stage.name}", ["Layer", *layers], rows)
        blocks.append(Block("part", [table], "Layer by layer"))
    blocks += _pairs("Other reasons", rest, ("Reason", "Value"))
    if (sample := sample_of(stage)) is not None and not is_last:
        text = Block("sample", sample.get("text", ""))
        blocks.append(Block("part", [text], "Sample after this step"))
    return blocks


def serving_blocks(stage: Stage) -> list[Block]:
    """Where a model runs, one row per runtime; nothing where that was not asked."""
    if not stage.servable:
        return []
    told = "“not tested” claims nothing: the runtime was not run on such a model here."
    rows = serving_rows(stage)
    return [Block("note", told), _table("Where it runs", SERVING_HEADS, rows, numbers=False)]


def _measured(report: Report) -> list[Block]:
    entries = [
        (f"{entry.title}: {', '.join(entry.stages)}" if entry.stages else entry.title, entry.recipe)
        for entry in measured(report)
    ]
    entries += [("Machine", flat(report.environment)), ("Versions", report.versions)]
    parts = [part for name, values in entries for part in _pairs(name, values)]
    return [Block("note", "Numbers are comparable where these entries are equal."), *parts]
