"""A comparison on disk: JSON, Markdown, one HTML page, and its figure as SVG and PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from modwright.core.files import write_file
from modwright.core.formatting import counted_text
from modwright.metrics.column import Column
from modwright.report.columns import words_of
from modwright.report.comparison import Comparison, Row
from modwright.report.document import Block, Cell, Table
from modwright.report.pages import html_page, markdown
from modwright.report.tables import flat

__all__ = ["comparison_sentences", "comparison_table", "write_comparison"]

_LEDE = (
    "Models beside each other, with their means and standard deviations where there are several "
    "seeds, against one baseline. How each number was measured stands further down."
)


def write_comparison(comparison: Comparison, directory: Path) -> dict[str, Path]:
    """Writes report.json, report.md, report.html and, where a number is drawn, figure.svg and .png.

    Everything is rendered before the first file is touched. The result names the files.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    from modwright.report.pareto import pareto

    drawn = pareto(comparison)
    stored = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    blocks = [Block("text", _subtitle(comparison)), *_sections(comparison)]
    shown = _sections(comparison, [] if drawn is None else [drawn[0]])
    texts: dict[str, str | bytes] = {
        "report.json": f"{stored}\n",
        "report.md": markdown([Block("section", blocks, comparison.title)], 1),
        "report.html": html_page(
            comparison.title, _subtitle(comparison), shown, f"{comparison.kind}s compared", _LEDE
        ),
    }
    if drawn is not None:
        texts |= {"figure.svg": drawn[0].svg, "figure.png": drawn[1]}
    return {name: write_file(directory / name, text) for name, text in texts.items()}


def comparison_table(comparison: Comparison) -> Table:
    """One line for each row: every number with its spread, and its change against the baseline."""
    lines = []
    several = any(len(row.models) > 1 for row in comparison.rows)
    for at, row in enumerate(comparison.rows):
        cells = [
            Cell(row.cell(one), row.change(comparison.baseline, one), row.mean(one))
            for one in comparison.columns
        ]
        seeds = [Cell(str(len(row.models)), "", len(row.models))] if several else []
        lines.append([Cell(row.name, "" if at else "baseline", at), *seeds, *cells])
    heads = [comparison.kind.capitalize(), *(["Seeds"] if several else [])]
    heads += [one.label for one in comparison.columns]
    return Table(f"{comparison.kind.capitalize()}s", heads, lines, sortable=True)


def comparison_sentences(comparison: Comparison) -> list[str]:
    """What is to be said in words: the best, what was kept, what cannot be compared."""
    found = []
    column = comparison.quality
    if column is not None and column.lower_is_better is not None and len(comparison.rows) > 1:
        ranked = comparison.ranked(column)
        if ranked:
            found.append(_best(comparison, ranked[0], column))
    if comparison.kept is not None and column is not None:
        name, label = comparison.kept
        said = ", ".join(filter(None, (name, label)))
        found.append(
            f"Kept as the result: {said}, by {words_of(column)[0]} on the data that it is "
            "reported on, so that its number flatters it."
        )
    return [*found, *comparison.differently(), *comparison.notes]


def _best(comparison: Comparison, row: Row, column: Column) -> str:
    way = "lowest" if column.lower_is_better else "highest"
    over = f" over {len(row.models)} seeds" if len(row.models) > 1 else ""
    change = row.change(comparison.baseline, column)
    against = f" ({change}, against {comparison.baseline.name})" if change else ""
    return f"The {way} {words_of(column)[0]}: {row.name} with {row.cell(column)}{over}{against}."


def _subtitle(comparison: Comparison) -> str:
    rows = counted_text(len(comparison.rows), comparison.kind)
    models = counted_text(sum(len(row.models) for row in comparison.rows), "model")
    created = comparison.facts.get("created")
    said = [rows, *([] if comparison.kind == "model" else [models]), created]
    return ", ".join(filter(None, said))


def _sections(comparison: Comparison, figures: Sequence[Any] = ()) -> list[Block]:
    meanings = [(one.label, one.meaning or one.label) for one in comparison.columns]
    table = [
        Block("table", comparison_table(comparison)),
        Block("fold", [Block("terms", meanings)], "What the columns mean"),
    ]
    found = (
        ("headline", "In short", [Block("bullets", comparison_sentences(comparison))]),
        ("table", f"{comparison.kind.capitalize()}s", table),
        ("plots", "Figure", [Block("figures", figures)] if figures else []),
        ("steps", "Model by model", _each(comparison)),
        ("measured", "How it was measured", _measured(comparison)),
        ("again", "How to make it again", _again(comparison)),
    )
    return [Block("section", blocks, title, name) for name, title, blocks in found if blocks]


def _each(comparison: Comparison) -> list[Block]:
    """Every model of its own, where rows have several."""
    if all(len(row.models) == 1 for row in comparison.rows):
        return []
    lines = [
        [Cell(f"{row.name}, {one.label}"), *(Cell(c.cell(found)) for c in comparison.columns)]
        for row in comparison.rows
        for one, found in zip(row.models, row.each())
    ]
    heads = ["Model", *(one.label for one in comparison.columns)]
    return [Block("fold", [Block("table", Table("Models", heads, lines))], "All models")]


def _measured(comparison: Comparison) -> list[Block]:
    first = comparison.baseline.models[0].stage
    recipes = {name: values.get("recipe") for name, values in first.measured.items()}
    groups = {column.group for column in comparison.columns}
    parts = [("cost", first.cost.get("recipe"))]
    parts += [(name, recipe) for name, recipe in recipes.items() if name in groups]
    entries = [(name, flat(recipe)) for name, recipe in parts if recipe]
    entries += [("Versions", flat(comparison.facts.get("versions") or {}))]
    found = []
    for name, values in entries:
        cells = [[Cell(key), Cell(value)] for key, value in values.items()]
        table = Block("table", Table(name, ("Entry", "Value"), cells, numbers=False))
        found += [Block("part", [table], name)] if cells else []
    return [Block("note", f"Of {comparison.baseline.name}, the baseline."), *found]


def _again(comparison: Comparison) -> list[Block]:
    found = []
    if comparison.facts.get("reproduce"):
        found.append(Block("code", comparison.facts["reproduce"], "bash"))
    if study := comparison.facts.get("study"):
        text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=88)
        found.append(Block("fold", [Block("code", text.rstrip(), "yaml")], "Every resolved recipe"))
    return found
