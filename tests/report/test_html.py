from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from modwright.report import Report, Stage, render_html, summary_sentences
from modwright.report.columns import shown_columns
from modwright.report.summary import summary_rules
from modwright.report.tables import measured, serving_rows

from .small import report, stage

VOID = {"meta", "br", "hr", "img", "input", "link", "area", "base", "col", "source", "wbr"}
ATTACK = '</pre><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7*7 }}'


class Page(HTMLParser):
    """Elements, attributes and text of a page; refuses a tag closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html(example: Report) -> str:
    return render_html(example)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed_and_ids_are_unique(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert labels <= set(ids)
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_nothing_outside_the_file_is_named(html: str, page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed"), tag
        for name in ("src", "href", "action", "srcset", "poster", "data", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r"https?:", re.sub(r'xmlns="[^"]*"', "", html))
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None and "default-src 'none'" in policy


def test_every_number_of_the_table_is_there(example: Report, page: Page) -> None:
    values = {
        attrs["data-value"] for tag, attrs in page.tags if tag == "td" and "data-value" in attrs
    }
    for shown in example.stages:
        for metric in shown_columns(example):
            assert metric.cell(shown) in page.text
            value = metric.of(shown)
            assert ("" if value is None else str(value)) in values
            assert metric.change_cell(example.before, shown) in page.text
    assert len(shown_columns(example)) == 13


def test_every_sentence_rule_and_recipe_entry_is_there(example: Report, page: Page) -> None:
    for line in summary_sentences(example):
        assert all(part.strip() in page.text for part in line.split("`"))
    for word, rule in summary_rules():
        assert word in page.text and rule in page.text
    for entry in measured(example):
        for name, value in entry.recipe.items():
            assert name in page.text and value in page.text


def test_the_rest_of_the_report_is_there(example: Report, page: Page, html: str) -> None:
    for shown in example.stages[1:]:
        assert shown.title in page.text
        assert all(note in page.text for note in shown.notes)
        assert all(f"{n} {word}" in page.text for word, n in shown.accounting.items())
    for shown in (example.before, example.after):
        assert shown.measured["generation"]["text"] in page.text
    for cells in serving_rows(example.after):
        assert all(part.strip() in page.text for cell in cells for part in cell.split("`"))
    assert example.reproduce in page.text
    recipes = [
        block for block in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL) if "steps:" in block
    ]
    assert yaml.safe_load(recipes[0]) == example.recipe


def test_text_from_the_report_is_escaped() -> None:
    odd = Stage(
        f"1 {ATTACK}",
        ATTACK,
        ATTACK,
        options={ATTACK: ATTACK},
        seconds={ATTACK: 1.0},
        cost={"parameters": 5, "recipe": {ATTACK: ATTACK}},
        measured={
            "perplexity": {"value": 3.0, "recipe": {"data": ATTACK}},
            "generation": {"prompt": ATTACK, "text": ATTACK, "repetition": 0.9},
        },
        reasons={"scores": {"mlp": [1.0, 2.0]}, "meaning": ATTACK, ATTACK: [ATTACK]},
        notes=[ATTACK, f"`{ATTACK}`"],
        accounting={ATTACK: 3},
        servable={ATTACK: f"see `{ATTACK}`"},
        plain=False,
    )
    before = replace(stage(perplexity=2.0), name=f"{ATTACK} before")
    hostile = report(
        before,
        odd,
        model={"name": ATTACK, "family": ATTACK},
        created=ATTACK,
        versions={ATTACK: ATTACK},
        environment={ATTACK: ATTACK},
        recipe={ATTACK: ATTACK},
        files={ATTACK: 3},
        reproduce=ATTACK,
    )
    page = Page(render_html(replace(hostile, title=ATTACK)))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.tags)
    assert ATTACK in page.text and "49" not in page.text


def test_equal_reports_give_equal_pages(example: Report, html: str) -> None:
    assert render_html(Report.from_dict(example.to_dict())) == html


@pytest.mark.parametrize(
    "stages",
    [
        [Stage("before")],
        [Stage("before"), Stage("1 x", "x")],
        [stage(perplexity=float("nan")), stage("1 x", perplexity=float("inf"))],
        [stage(), stage("1 x", perplexity=3e9, repetition=1.0, text="")],
        [
            Stage("before", measured={"generation": {"text": "no prompt"}}),
            Stage("1 x", "x", measured={"generation": {"prompt": "p"}}),
        ],
    ],
    ids=["one empty stage", "two empty stages", "not finite", "far off", "half a sample"],
)
def test_a_report_with_little_in_it_is_a_page_too(stages: list[Stage]) -> None:
    page = Page(render_html(report(*stages)))
    assert "None" not in page.text and "nan" not in page.text.split()
    assert all(line.split("`")[0] in page.text for line in summary_sentences(report(*stages)))


def test_headlines_say_what_was_not_measured() -> None:
    page = Page(render_html(report(stage(perplexity=None), stage("1 x", perplexity=None))))
    assert "not measured → not measured" in page.text


def test_long_reasons_are_cut_and_say_so() -> None:
    long = Stage("1 x", "x", reasons={"picks": [[i, i] for i in range(5000)]})
    html = render_html(report(Stage("before"), long))
    assert len(html) < 60_000 and "the rest stands in report.json" in html
