"""The blocks of a report rendered: one self-contained HTML page, and plain Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from modwright.report.data import Report
from modwright.report.document import Block, Cell, Table, sections, subtitle

__all__ = ["fenced", "html_page", "inline", "markdown", "render_html", "render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def render_html(report: Report) -> str:
    """One HTML page: no network, readable on a phone, printable; equal for equal reports.

    Example:
        >>> from modwright.report import Stage
        >>> page = render_html(Report("example", stages=[Stage("before")]))
        >>> page.startswith("<!doctype html>"), "<link" in page
        (True, False)
    """
    from modwright.report.plots import plots

    return html_page(report.title, subtitle(report), sections(report, plots(report)))


def html_page(title: str, subtitle: str, sections: Iterable[Block]) -> str:
    """A page of sections as one HTML file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("modwright.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2").render(
        title=title, subtitle=subtitle, sections=sections
    )


def render_markdown(report: Report) -> str:
    """The whole report as GitHub Markdown.

    Example:
        >>> from modwright.report import Stage
        >>> render_markdown(Report("example", stages=[Stage("before")])).splitlines()[0]
        '# example'
    """
    blocks = [Block("text", subtitle(report)), *sections(report)]
    return markdown([Block("section", blocks, report.title)], 1)


def markdown(blocks: Iterable[Block], level: int = 2) -> str:
    """Blocks one below the other, with headings from ``level`` on."""
    return "\n\n".join(_parts(blocks, level)) + "\n"


def _parts(blocks: Iterable[Block], level: int) -> list[str]:
    return [part for block in blocks for part in _written(block, level) if part]


def _written(block: Block, level: int) -> Iterator[str]:
    body, title = block.body, block.title
    if block.kind in ("section", "part", "fold"):
        inside = _parts(body, level + 1)
        aside = f" {block.aside}" if block.kind == "fold" and block.aside else ""
        yield from [f"{'#' * level} {inline(title + aside)}", *inside] if inside else []
    elif block.kind in ("text", "note"):
        yield f"**{inline(title)}:** {inline(body)}" if title else inline(body)
    elif block.kind == "bullets":
        yield "\n".join(f"- {inline(line)}" for line in body)
    elif block.kind == "terms":
        yield "\n".join(f"- {inline(f'{word}: {meaning}')}" for word, meaning in body)
    elif block.kind == "table":
        yield _table(body)
        if body.sortable:
            yield "In brackets: the change against the baseline."
    elif block.kind in ("code", "sample"):
        yield fenced(body, title or "text")


def _table(table: Table) -> str:
    """Numbers are aligned to the right."""
    mark = "---:" if table.numbers else ":---"
    lines = [
        [inline(head) for head in table.heads],
        [":---", *[mark] * (len(table.heads) - 1)],
        *([_cell(cell, at) for at, cell in enumerate(row)] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell, column: int) -> str:
    if not cell.note:
        return inline(cell.text)
    return inline(f"{cell.text} ({cell.note})" if column else f"{cell.text}: {cell.note}")


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
