"""Where a model runs: the section of every page, and the words that older reports have."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from modwright.core.errors import InvalidInputError
from modwright.core.formatting import MISSING
from modwright.report import Report, Stage, model_card, render_html, render_markdown
from modwright.report.tables import SERVING_HEADS, serving_rows

from .small import report, stage

TOLD = {
    "transformers": {"answer": "yes", "why": "after `import modwright`"},
    "llama.cpp": {"answer": "no", "why": "layers differ: no mlp in block 3"},
    "ONNX Runtime": {"answer": "after export", "command": "modwright export DIR -o OUT"},
}


def edited() -> Report:
    return report(stage(), Stage("1 x", "x", plain=False, servable=TOLD))


def tables_of(markdown: str) -> list[list[list[str]]]:
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
        for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    ]


@pytest.mark.contract("E1")
def test_every_page_has_one_row_per_runtime() -> None:
    made = edited()
    for page in (render_markdown(made), model_card(made)):
        (found,) = [table for table in tables_of(page) if table[0] == list(SERVING_HEADS)]
        assert found[1:] == [
            ["transformers", "yes", "after <code>import modwright</code>"],
            ["llama.cpp", "no", "layers differ: no mlp in block 3"],
            ["ONNX Runtime", "after export", "<code>modwright export DIR -o OUT</code>"],
        ]
    html = render_html(made)
    section = html.split('<h2 id="servable">')[1].split("</section>")[0]
    assert section.count("<tr>") == 1 + len(TOLD)
    assert "<code>modwright export DIR -o OUT</code>" in section
    assert "not tested" in section


def test_a_model_of_which_nothing_is_said_has_no_such_section() -> None:
    made = report(stage(), Stage("1 x", "x"))
    assert "Where" not in render_markdown(made) + model_card(made)
    assert 'id="servable"' not in render_html(made)


def test_one_sentence_is_a_reason_as_in_older_reports() -> None:
    old = Stage("before", servable={"vLLM": "not tried here"})
    assert serving_rows(old) == [("vLLM", MISSING, "not tried here")]
    assert Stage.from_dict(old.to_dict()) == old


@pytest.mark.parametrize("odd", [3, ["yes"], {"answer": 1}, {"sentence": "yes"}])
def test_what_is_no_text_is_refused(odd: object) -> None:
    with pytest.raises(InvalidInputError, match="servable\\."):
        Stage("before", servable={"vLLM": odd})
