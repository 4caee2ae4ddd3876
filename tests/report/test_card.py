from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from modwright.report import Report, Stage, model_card, summary_sentences
from modwright.report.pages import inline

from .small import report, stage


def front(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def code(card: str) -> str:
    block = re.search(r"```(\w*)\n(.*?)\n```", card, re.DOTALL)
    assert block is not None and block[1] == "python"
    return block[2]


def test_front_matter(example: Report) -> None:
    assert front(model_card(example)) == {
        "base_model": "SmolLM2-135M-Instruct",
        "library_name": "modwright",
        "pipeline_tag": "text-generation",
        "tags": ["modwright", "llm_drop", "modegpt"],
    }


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"name": "small", "source": "owner/small-1.7B"}, "owner/small-1.7B"),
        ({"name": "small", "source": "/home/me/models/small"}, "small"),
        ({"name": "small", "source": "./small"}, "small"),
        ({}, None),
    ],
)
def test_the_base_model_is_never_a_path(model: dict[str, str], base: str | None) -> None:
    assert front(model_card(report(stage(), model=model))).get("base_model") == base


def test_a_method_used_twice_is_one_tag() -> None:
    card = model_card(report(stage(), stage("1 x"), stage("2 x")))
    assert front(card)["tags"] == ["modwright", "x"]


def test_the_first_code_block_loads_and_generates(example: Report) -> None:
    lines = code(model_card(example)).splitlines()
    assert lines[0] == "import modwright  # registers the edited architecture"
    ast.parse("\n".join(lines))
    text = "\n".join(lines)
    assert text.index("import modwright") < text.index("from_pretrained")
    assert "AutoModelForCausalLM.from_pretrained(folder)" in text and "model.generate(" in text
    assert "apply_chat_template" in text, "the sample was made with the chat template"


def test_a_plain_result_does_not_need_us() -> None:
    card = model_card(report(stage(), stage("1 x", repetition=0.0)))
    assert "import modwright" not in card
    assert "apply_chat_template" not in card
    assert 'tokenizer("Say.", return_tensors="pt")' in code(card)


def test_code_quotes_any_prompt_and_place() -> None:
    odd = 'a "quote", a \\ and\na line \' 日本 🙂'
    written = {"prompt": odd, "text": "t", "settings": {"chat": True}}
    last = Stage("1 x", "x", measured={"generation": written})
    tree = ast.parse(code(model_card(report(Stage("before"), last), location=odd)))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert strings.count(odd) == 2


def test_an_encoder_has_no_pipeline_tag_and_is_not_asked_to_write() -> None:
    for made in (
        report(Stage("before"), Stage("1 x", "x")),
        report(stage(), stage("1 x"), model={"auto_class": "AutoModelForMaskedLM"}),
    ):
        card = model_card(made)
        assert "pipeline_tag" not in front(card)
        assert "generate" not in code(card)
        ast.parse(code(card))
    assert "AutoModelForMaskedLM.from_pretrained" in card


def test_before_after_recipe_and_limits(example: Report) -> None:
    card = model_card(example)
    for words in ("30.92", "44.87 (× 1.45)", "134,515,008", "120,080,448 (−10.7 %)"):
        assert words in card
    assert "36.56 (×" not in card, "steps between stand in the report"
    assert all(inline(line) in card for line in summary_sentences(example))
    blocks = re.findall(r"```yaml\n(.*?)\n```", card, re.DOTALL)
    assert yaml.safe_load(blocks[0]) == example.recipe
    assert example.reproduce in card
    limits = card.split("## Limits")[1]
    for words in (
        "as perplexity on one text (lee.cor) and as agreement with the base model on one text",
        "and as scores of lm-eval 0.4.13 (capitals) only",
        "one machine",
    ):
        assert words in limits


def test_limits_say_what_was_not_measured() -> None:
    limits = model_card(report(Stage("before"), Stage("1 x", "x"))).split("## Limits")[1]
    assert "Quality was not measured." in limits and "Speed was not timed." in limits
