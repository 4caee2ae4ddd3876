"""Costs as tables for a terminal. Rich is imported when a table is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modwright.core.formatting import format_number, percent

if TYPE_CHECKING:
    from rich.table import Table

    from modwright.cost.counting import Cost
    from modwright.cost.speed import Speed
    from modwright.cost.tree import Group, Tree

__all__ = ["cost_table", "speed_table", "tree_table", "visible"]


def _table(caption: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        caption=caption,
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        pad_edge=False,
    )
    for column in columns:
        table.add_column(
            column, justify="left" if column in _TEXT else "right", no_wrap=column != "what it is"
        )
    return table


_TEXT = ("part", "what it is", "kind", "")


def visible(group: Group, depth: int = 0) -> Iterator[tuple[int, Group]]:
    """The lines of a tree from top to bottom with their depth, alike blocks as one."""
    yield depth, group
    for child in group.node.groups():
        yield from visible(child, depth + 1)


def tree_table(tree: Tree) -> Table:
    """One line per part; neighboring blocks that are alike share theirs."""
    from rich.markup import escape

    lines = list(visible(tree.top))
    caption = f"MACs: {tree.reads}; bytes: powers of 1000; share: of all parameters"
    if any(group.count > 1 for _, group in lines):
        caption += "; a line for several blocks, and those below it, show one of them"
    table = _table(caption, "part", "what it is", "params", "share", "bytes", "MACs")
    names = [" " * depth + group.label for depth, group in lines]
    table.columns[0].min_width = max(map(len, names))
    for name, (_, group) in zip(names, lines, strict=True):
        node = group.node
        table.add_row(
            escape(name),
            escape(node.description),
            format_number(node.parameters),
            percent(node.parameters, tree.root.parameters, 0),
            format_number(node.bytes, "B"),
            format_number(node.macs),
            style="dim" if node.description == "removed" else None,
        )
    return table


def cost_table(cost: Cost) -> Table:
    """One line per kind of part, the totals, and what they were counted for."""
    recipe = cost.recipe
    caption = (
        f"batch {recipe['batch']}, {recipe['length']} tokens, {recipe['dtype']}; key/value cache "
        f"{format_number(cost.kv_bytes, 'B')} per sequence; activations at least "
        f"{format_number(cost.activation_bytes, 'B')}; bytes in powers of 1000"
    )
    if "positions" in recipe:
        caption += f"; {recipe['positions']}"
    columns = ["kind", "parameters", "share", "bytes", "prefill\nMACs", "share"]
    decodes = "context" in recipe
    table = _table(caption, *columns, *(["decode\nMACs"] if decodes else []))
    for kind, row in cost.by_kind().items():
        cells = [
            kind,
            format_number(row.parameters),
            percent(row.parameters, cost.parameters),
            format_number(row.bytes, "B"),
            format_number(row.prefill_macs),
            percent(row.prefill_macs, cost.prefill_macs),
        ]
        table.add_row(*cells, *([format_number(row.decode_macs)] if decodes else []))
    table.add_section()
    totals = [
        format_number(cost.parameters),
        "",
        format_number(cost.stored_bytes, "B"),
        format_number(cost.prefill_macs),
    ]
    table.add_row("total", *totals, "", *([format_number(cost.decode_macs)] if decodes else []))
    return table


def speed_table(speed: Speed) -> Table:
    """One line per phase."""
    table = _table(speed.method, "", "tokens/s", "median s", "least s", "most s")
    for name, rate, spread in speed.phases():
        seconds = (spread.median, spread.least, spread.most)
        table.add_row(name, f"{rate:,.1f}", *(f"{value:.4f}" for value in seconds))
    return table
