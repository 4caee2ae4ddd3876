"""The catalogue of papers: cards with a filter, heads of pages, short pages of what is planned."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path

from modwright.papers import CATEGORIES, STATUSES, Paper, papers

__all__ = ["MAKERS", "navigation", "planned_pages", "with_head"]

DOCS = Path(__file__).parents[1]
_NOT_YET = "Nothing of it is here yet."
_SAID = {
    "works": "held by tests, with a figure measured here",
    "partial": "something of it can be used",
    "planned": "not here yet",
}


def navigation() -> list[dict[str, str]]:
    """The papers that have a page of their own."""
    return [{one.slug: _page(one)} for one in papers() if _is_written(one)]


def planned_pages() -> dict[str, str]:
    """Path in docs -> text, for papers without a page of their own."""
    return {_page(one): _short_page(one) for one in papers() if not _is_written(one)}


def with_head(path: str, markdown: str) -> str:
    """The text of a paper's page with what its record says below the title."""
    one = next((one for one in papers() if _page(one) == path), None)
    if one is None or not _is_written(one):
        return markdown
    title, _, rest = markdown.partition("\n")
    modules = ", ".join(f"[`{room}`][{room}]" for room in one.modules)
    command = f" · `{one.command}` gives the figures" if one.command else ""
    return f"{title}\n\n{_head(one)} · {modules}{command}\n{{ .paper-head }}\n{rest}"


def _page(one: Paper) -> str:
    return one.page.removeprefix("docs/") if one.page else f"papers/{one.slug}.md"


def _is_written(one: Paper) -> bool:
    """The paper has a page of its own in docs."""
    return (DOCS / _page(one)).is_file()


def _head(one: Paper) -> str:
    return f"{_badge(one.status)} · {', '.join(one.category)} · [arXiv {one.arxiv}]({one.url})"


def _badge(status: str) -> str:
    return f'<span class="badge {status}">{status}</span>'


def _short_page(one: Paper) -> str:
    modules = [f"- `{room}`" for room in one.modules]
    info = ["What can be used of it:", "", *modules] if modules else [_NOT_YET]
    lines = [
        f"# {one.title}",
        "",
        f"{_head(one)} · {one.year}",
        "{ .paper-head }",
        "",
        one.summary,
        "",
        *info,
        "",
        "[All papers](index.md)",
    ]
    return "\n".join(lines) + "\n"


def _cards() -> str:
    status = Counter(one.status for one in papers())
    category = Counter(word for one in papers() for word in one.category)
    form = [
        '<form class="catalogue-filter" role="search" aria-label="Papers" hidden>',
        '<input type="search" name="text" placeholder="Search titles and summaries" '
        'aria-label="Text" autocomplete="off">',
        _choice("status", "every status", {s: status[s] for s in reversed(STATUSES) if status[s]}),
        _choice("category", "every category", {c: category[c] for c in CATEGORIES if category[c]}),
        '<button type="reset">Reset</button>',
        "<output></output>",
        "</form>",
    ]
    # What works stands first.
    ordered = sorted(papers(), key=lambda one: (-STATUSES.index(one.status), one.slug))
    cards = "\n".join(_card(one) for one in ordered)
    return "\n".join([*form, "", '<div class="paper-cards" markdown>', cards, "</div>"])


def _choice(name: str, everything: str, counted: dict[str, int]) -> str:
    options = "".join(f'<option value="{v}">{v} ({n})</option>' for v, n in counted.items())
    return (
        f'<select name="{name}" aria-label="{name}"><option value="">{everything}</option>'
        f"{options}</select>"
    )


def _card(one: Paper) -> str:
    text = " ".join([one.slug, one.title, one.arxiv, str(one.year), one.summary, *one.category])
    data = (
        f'data-status="{one.status}" data-category="{" ".join(one.category)}" '
        f'data-text="{escape(text.lower(), quote=True)}"'
    )
    figure = one.figure or "No figure: nothing was measured here."
    return "\n".join(
        [
            f'<article class="paper-card" {data} markdown>',
            f"### [{one.title}]({_page(one).removeprefix('papers/')}) {{ #{one.slug} }}",
            "",
            f"{_badge(one.status)} {' '.join(_badge(word) for word in one.category)}",
            "",
            one.summary,
            "",
            figure,
            "{ .figure }",
            "",
            "</article>",
        ]
    )


def _statuses() -> str:
    counted = Counter(one.status for one in papers())
    return "\n".join(f"- {_badge(s)} {counted[s]}: {_SAID[s]}" for s in reversed(STATUSES))


MAKERS = {"catalogue": _cards, "statuses": _statuses}
