from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modwright.core.errors import InvalidInputError
from modwright.report import Report, Stage, render_markdown

from .conftest import EXAMPLE

BLOCK = {"attention": {"heads": 2, "kv_heads": 1, "qk": 8, "v": 8}, "mlp": 64}


def test_the_example_says_that_it_is_one(example: Report) -> None:
    assert example.title == "example"
    assert "invented" in EXAMPLE.read_text(encoding="utf-8")


def test_json_round_trip_of_the_example_keeps_every_field(example: Report) -> None:
    text = json.dumps(example.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)) == example
    assert json.loads(text) == json.loads(EXAMPLE.read_text(encoding="utf-8"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(options=st.dictionaries(st.text(max_size=4), PLAIN, max_size=3), title=st.text(max_size=9))
def test_json_round_trip_of_anything_plain(options: dict[str, Any], title: str) -> None:
    stages = [Stage("before"), Stage("1 x", "x", title, options, reasons={"extra": options})]
    report = Report("r", recipe=options, stages=stages)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_what_is_passed_in_is_copied() -> None:
    options: dict[str, Any] = {"layers": [1, 2]}
    stage = Stage("1 x", "x", options=options)
    options["layers"].append(3)
    assert stage.options == {"layers": [1, 2]}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_a_perplexity_that_is_no_number_is_marked(value: float) -> None:
    stage = Stage("before", measured={"perplexity": {"value": value, "recipe": {}}})
    assert stage.broken == ["perplexity"]
    assert stage.measured["perplexity"] == {"value": None, "recipe": {}, "finite": False}


def test_a_number_marked_as_not_finite_is_not_used() -> None:
    stage = Stage("before", measured={"perplexity": {"value": 3.0, "finite": False}})
    assert stage.broken == ["perplexity"]


def test_agreement_and_scores_that_are_no_numbers_are_marked() -> None:
    def found(name: str, **values: Any) -> dict[str, Any]:
        return Stage("before", measured={name: values}).measured[name]

    broken = {"kl": None, "top1": 0.5, "finite": False}
    assert found("divergence", kl=float("inf"), top1=0.5) == broken
    assert found("divergence", cosine=0.5) == {"cosine": 0.5, "finite": True}
    assert found("lm_eval", scores=[]) == {"scores": [], "finite": True}
    stage = Stage("before", measured={"divergence": {"kl": float("nan"), "top1": 0.5}})
    assert Stage.from_dict(stage.to_dict()).measured["divergence"] == broken


@pytest.mark.parametrize("number", [1, 2])
def test_a_report_of_an_older_format_is_still_read(number: int) -> None:
    stored = json.loads(EXAMPLE.with_name(f"report_format_{number}.json").read_text("utf-8"))
    assert stored["format"] == number
    read = Report.from_dict(stored)
    names = {"quality": "perplexity", "agreement": "divergence", "harness": "lm_eval"}
    names |= {"speed": "speed", "sample": "generation"}
    for stage, old in zip(read.stages, stored["stages"]):
        there = {names[field] for field in names if old.get(field) is not None}
        assert set(stage.measured) == there
        assert stage.measured["perplexity"]["value"] == old["quality"]["perplexity"]
        assert stage.measured["perplexity"]["recipe"] == old["quality"]["recipe"]
        assert stage.measured["generation"]["text"] == old["sample"]["text"]
    assert read.to_dict()["format"] == 3
    assert Report.from_dict(read.to_dict()) == read


def test_a_metric_that_is_not_registered_here_is_kept_and_its_recipe_shown() -> None:
    values = {"value": 3.0, "recipe": {"data": "somewhere"}, "own": [1, 2]}
    read = Stage.from_dict(Stage("before", measured={"of_a_plugin": values}).to_dict())
    assert read.measured["of_a_plugin"] == values
    assert "somewhere" in render_markdown(Report("r", stages=[read]))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Report("r"), "at least one stage"),
    (lambda: Report("r", stages=[Stage("1 x", "x")]), "has no method"),
    (lambda: Report("r", stages=[Stage("before"), Stage("1 x")]), "needs the name of its method"),
    (lambda: Report("r", stages=[Stage("a"), Stage("a", "x")]), "two stages are named 'a'"),
    (
        lambda: Report("r", stages=[{"name": "before"}]),
        "report, stages.0: input should be an instance of Stage",
    ),  # type: ignore[list-item]
    (lambda: Stage("a", options={"where": Path("x")}), "options.where is a PosixPath"),
    (lambda: Stage("a", options={None: 1}), "has the key None"),  # type: ignore[dict-item]
    (lambda: Stage("a", notes="one"), "stage 'a', notes: must be a list, not 'one'"),  # type: ignore[arg-type]
    (lambda: Stage("a", plain=None), "plain: must be true or false"),  # type: ignore[arg-type]
    (lambda: Stage("a", cost={"parameters": "many"}), "cost.parameters: must be a number"),
    (
        lambda: Stage("a", measured={"divergence": {"top1": "most"}}),
        "measured.divergence.top1: must be a number",
    ),
    (
        lambda: Stage("a", measured={"lm_eval": {"scores": [{}]}}),
        "measured.lm_eval.scores.0.name: is missing",
    ),
    (
        lambda: Stage("a", measured={"lm_eval": {"scores": [{"name": "x acc", "value": "high"}]}}),
        "measured.lm_eval.scores.0.value: must be a number",
    ),
    (
        lambda: Stage("a", measured={"generation": {"text": 3}}),
        "measured.generation.text: must be text",
    ),
    (lambda: Stage("a", shape=[{"mlp": 3}]), "shape.0.attention: is missing"),
    (
        lambda: Stage("a", shape=[{"mlp": 3, "attention": {"heads": 1}}]),
        "shape.0.attention.kv_heads: is missing",
    ),
    (lambda: Stage("a", shape=[BLOCK], source_blocks=[0, 1]), "1 blocks in shape and 2"),
    (lambda: Report.from_dict({"title": "r", "stage": []}), "did you mean 'stages'"),
    (lambda: Report.from_dict({"format": 99, "title": "r"}), "format 99"),
    (lambda: Report.from_dict({"stages": []}), "needs the field 'title'"),
    (lambda: Report.from_dict({"title": "r", "stages": {}}), "must be a list"),
    (lambda: Report.from_dict([]), "a mapping of fields"),  # type: ignore[arg-type]
    (lambda: Stage.from_dict({"name": "a", "measurd": {}}), "did you mean 'measured'"),
]


@pytest.mark.parametrize(("build", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refusals_name_the_place_in_one_line(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        build()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_reprs_are_short(example: Report) -> None:
    assert repr(example) == "Report('example': before -> 1 llm_drop -> 2 modegpt)"
    assert len(repr(example.after)) < 100
