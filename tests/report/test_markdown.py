from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from modwright.report import Report, Stage, render_markdown, summary_sentences
from modwright.report.columns import shown_columns
from modwright.report.pages import fenced, inline
from modwright.report.tables import measured

from .small import report, stage

ATTACKS = [
    "<script>alert(1)</script>",
    "a | b",
    "*b* _c_ [d](e) # f",
    "```\n# x",
    "two\nlines",
    "`|`",
]


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def plain(html: str) -> str:
    text = re.sub(r"<[^>]*>", " ", html)
    for name, sign in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("amp", "&")):
        text = text.replace(f"&{name};", sign)
    return " ".join(text.split())


def test_every_number_sentence_and_recipe_is_there(example: Report) -> None:
    text = plain(rendered(render_markdown(example)))
    for shown in example.stages:
        for metric in shown_columns(example):
            assert metric.cell(shown) in text
            assert metric.change_cell(example.before, shown) in text
        assert shown.title in text
    for line in summary_sentences(example):
        assert all(part.strip() in text for part in line.split("`"))
    for entry in measured(example):
        assert all(name in text and value in text for name, value in entry.recipe.items())
    assert example.reproduce in text


def test_tables_are_tables(example: Report) -> None:
    html = rendered(render_markdown(example))
    assert html.count("<table>") >= 8
    for line in render_markdown(example).splitlines():
        assert not line.startswith("|") or line.endswith("|")
    rows = re.findall(r"<tr>(.*?)</tr>", html.split("</table>")[0], re.DOTALL)
    assert len(rows) == 1 + len(example.stages)
    assert {len(re.findall(r"<t[hd]", row)) for row in rows} == {1 + len(shown_columns(example))}


@pytest.mark.parametrize("text", ATTACKS)
def test_any_text_shows_as_it_is(text: str) -> None:
    html = rendered(f"| a |\n| --- |\n| {inline(text)} |")
    assert "<script" not in html and "<em>" not in html and "<a " not in html
    assert html.count("<td>") == 1
    if "`" not in text:
        assert " ".join(text.split()) in plain(html)


@pytest.mark.parametrize("text", ATTACKS)
def test_a_block_holds_any_text(text: str) -> None:
    html = rendered(fenced(text, "text"))
    assert html.count("<pre>") == 1 and "<h1>" not in html and "<script" not in html


def test_a_hostile_report_keeps_its_tables() -> None:
    for text in ATTACKS:
        odd = Stage(f"1 {text}", "x", text, {text: text}, notes=[text], servable={text: text})
        html = rendered(render_markdown(report(stage(), odd, reproduce=text)))
        assert "<script" not in html
        assert html.count("<h1>") == 1


def test_rendering_twice_gives_the_same(example: Report) -> None:
    again = render_markdown(Report.from_dict(example.to_dict()))
    assert again == render_markdown(example)


def test_little_is_said_of_an_empty_report() -> None:
    text = render_markdown(report(Stage("before")))
    assert "None" not in text and "\n\n\n" not in text
