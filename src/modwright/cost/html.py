"""Costs as self-contained HTML: one style block, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from modwright.core.formatting import format_number, percent

if TYPE_CHECKING:
    from modwright.cost.counting import Cost, PartCost
    from modwright.cost.speed import Speed
    from modwright.cost.tree import Group, Tree

__all__ = ["cost_html", "speed_html", "tree_html"]

_STYLE = """<style>
.modwright {font: 13px/1.5 system-ui, sans-serif; overflow-x: auto}
.modwright details, .modwright .leaf {margin-left: 1.2em}
.modwright .leaf {padding-left: 1em}
.modwright .what {opacity: .75; margin: 0 .8em}
.modwright .numbers {opacity: .75; font-variant-numeric: tabular-nums; white-space: nowrap}
.modwright .bar {display: inline-block; width: 80px; height: .6em; margin-right: .6em;
  border: 1px solid currentColor; opacity: .6}
.modwright .bar span {display: block; height: 100%; background: currentColor}
.modwright table {font: inherit; border-collapse: collapse; font-variant-numeric: tabular-nums}
.modwright th, .modwright td {padding: .1em .8em; text-align: right}
.modwright th:first-child, .modwright td:first-child {text-align: left}
.modwright .total td {border-top: 1px solid currentColor}
</style>"""


def _page(*pieces: str) -> str:
    return f'<div class="modwright">{_STYLE}{"".join(pieces)}</div>'


def _bar(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    told = f"{percent(part, whole)} of all parameters"
    return (
        f'<span class="bar" role="img" aria-label="{told}" title="{told}">'
        f'<span style="width: {share:.1f}%"></span></span>'
    )


def tree_html(tree: Tree) -> str:
    """Nested parts to unfold, each with the share of the parameters that it holds."""
    note = (
        f"<p>MACs: {tree.reads}; bytes: powers of 1000; bar: share of all "
        "parameters. A line for several blocks, and those below it, show the numbers of one.</p>"
    )
    return _page(_unfold(tree.top, tree.root.parameters, 1, 0), note)


def _unfold(group: Group, whole: int, repeats: int, depth: int) -> str:
    node, repeats = group.node, repeats * group.count
    each = " each" if group.count > 1 else ""
    line = (
        f"{_bar(node.parameters * repeats, whole)}<b>{escape(group.label)}</b>"
        f'<span class="what">{escape(node.description)}</span>'
        f'<span class="numbers">{format_number(node.parameters)} parameters, '
        f"{format_number(node.bytes, 'B')}, "
        f"{format_number(node.macs)} MACs{each}</span>"
    )
    if not node.children:
        return f'<div class="leaf">{line}</div>'
    inner = "".join(_unfold(child, whole, repeats, depth + 1) for child in node.groups())
    unfolded = " open" if depth < 2 else ""
    return f"<details{unfolded}><summary>{line}</summary>{inner}</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    foot = f'<tr class="total">{cells("td", total)}</tr>' if total else ""
    return (
        f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}{foot}</tbody></table>"
    )


def _cells(name: str, row: PartCost | Cost, size: int) -> list[str]:
    macs = [format_number(row.prefill_macs), format_number(row.decode_macs)]
    return [name, format_number(row.parameters), format_number(size, "B"), *macs]


def cost_html(cost: Cost) -> str:
    """Totals by kind of part, what they were counted for, and every part to unfold."""
    recipe = cost.recipe
    header = ["", "parameters", "bytes", "prefill MACs", "decode MACs"]
    kinds = [_cells(kind, row, row.bytes) for kind, row in cost.by_kind().items()]
    parts = [_cells(row.address, row, row.bytes) for row in cost.rows]
    memory = (
        f"<p>Batch {recipe['batch']}, {recipe['length']} tokens, {escape(recipe['dtype'])}. "
        f"Key/value cache {format_number(cost.kv_bytes, 'B')} per sequence, activations at least "
        f"{format_number(cost.activation_bytes, 'B')}; bytes in powers of 1000.</p>"
    )
    rules = "".join(f"<li>{escape(f'{name}: {value}')}</li>" for name, value in recipe.items())
    return _page(
        _table(header, kinds, _cells("total", cost, cost.stored_bytes)),
        memory,
        f"<details><summary>what is counted</summary><ul>{rules}</ul></details>",
        f"<details><summary>{len(parts)} parts</summary>{_table(header, parts)}</details>",
    )


def speed_html(speed: Speed) -> str:
    """One line per phase and how it was measured."""
    rows = [
        [name, f"{rate:,.1f}", *(f"{s:.4f}" for s in (spread.median, spread.least, spread.most))]
        for name, rate, spread in speed.phases()
    ]
    header = ["", "tokens/s", "median s", "least s", "most s"]
    return _page(_table(header, rows), f"<p>{escape(speed.method)}</p>")
