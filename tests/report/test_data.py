from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modwright.core.errors import InvalidInputError
from modwright.report import Report, Stage

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
    stage = Stage("before", quality={"perplexity": value, "recipe": {}})
    assert stage.is_broken and stage.perplexity is None
    assert stage.quality == {"perplexity": None, "recipe": {}, "finite": False}


def test_a_number_marked_as_not_finite_is_not_used() -> None:
    assert Stage("before", quality={"perplexity": 3.0, "finite": False}).is_broken


def test_agreement_and_scores_that_are_no_numbers_are_marked() -> None:
    found = Stage("before", agreement={"kl": float("inf"), "top1": 0.5}).agreement
    assert found == {"kl": None, "top1": 0.5, "finite": False}
    assert Stage("before", agreement={"cosine": 0.5}).agreement == {"cosine": 0.5, "finite": True}
    assert Stage("before", harness={"scores": []}).harness == {"scores": [], "finite": True}
    read = Stage.from_dict(Stage("before", agreement={"kl": float("nan"), "top1": 0.5}).to_dict())
    assert read.agreement == {"kl": None, "top1": 0.5, "finite": False}


def test_a_report_of_format_1_is_still_read() -> None:
    stored = json.loads(EXAMPLE.with_name("report_format_1.json").read_text(encoding="utf-8"))
    assert stored["format"] == 1
    read = Report.from_dict(stored)
    assert [stage.perplexity for stage in read.stages] == [
        stage["quality"]["perplexity"] for stage in stored["stages"]
    ]
    assert read.before.agreement is None and read.before.harness is None
    assert read.to_dict()["format"] == 2


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
    (lambda: Stage("a", agreement={"top1": "most"}), "agreement.top1: must be a number"),
    (lambda: Stage("a", harness={"scores": [{}]}), "harness.scores.0.name: is missing"),
    (
        lambda: Stage("a", harness={"scores": [{"name": "x acc", "value": "high"}]}),
        "harness.scores.0.value: must be a number",
    ),
    (lambda: Stage("a", sample={"text": 3}), "sample.text: must be text"),
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
    (lambda: Stage.from_dict({"name": "a", "sampel": {}}), "did you mean 'sample'"),
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
