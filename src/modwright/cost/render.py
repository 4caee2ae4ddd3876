"""Costs as tables: for a terminal, for which rich is imported then, and as HTML without scripts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CostTable", "Shown", "fold", "page"]

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


class CostTable(NamedTuple):
    """Lines of numbers behind a name; a column "what it is" holds words."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()

    def rich(self) -> Table:
        """For a terminal; parts that are gone are dim."""
        from rich import box, markup
        from rich.table import Table

        table = Table(
            caption=markup.escape(self.caption),
            box=box.SIMPLE_HEAD,
            caption_justify="left",
            pad_edge=False,
        )
        for at, head in enumerate(self.heads):
            is_words = head == "what it is"
            table.add_column(
                head, justify="left" if is_words or not at else "right", no_wrap=not is_words
            )
        table.columns[0].min_width = max((len(row[0]) for row in self.rows), default=0)
        for row in self.rows:
            table.add_row(*map(markup.escape, row), style="dim" if "removed" in row else None)
        if self.total:
            table.add_section()
            table.add_row(*self.total)
        return table

    def html(self) -> str:
        """The table itself, its caption below it."""
        body = "".join(_line("td", row) for row in self.rows)
        if self.total:
            body += _line("td", self.total, ' class="total"')
        told = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        head = _line("th", self.heads)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{told}"


def _line(tag: str, cells: Sequence[str], look: str = "") -> str:
    return f"<tr{look}>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def fold(summary: str, *inside: str, unfolded: bool = False) -> str:
    """Pieces of HTML to unfold below a summary."""
    opened = " open" if unfolded else ""
    return f"<details{opened}><summary>{summary}</summary>{''.join(inside)}</details>"


def page(*pieces: str) -> str:
    """Self-contained HTML: one style block, nothing loaded from elsewhere."""
    return f'<div class="modwright">{_STYLE}{"".join(pieces)}</div>'


class Shown(ABC):
    """What shows itself as a table in a terminal, and as HTML in a notebook."""

    @abstractmethod
    def table(self) -> CostTable:
        """What is shown."""

    def __rich__(self) -> Table:
        return self.table().rich()

    def _repr_html_(self) -> str:
        return page(self.table().html())
