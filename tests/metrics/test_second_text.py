"""Every report of a language model says what became of a text of another origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import number_text
from modwright.metrics.registry import Subject, make_metric
from modwright.recipes.load import parse_recipe
from modwright.recipes.quality import seen_text_notes, supported
from modwright.recipes.run import run
from modwright.recipes.schema import Evaluate
from modwright.report import summary_sentences

TINY = {"windows": 6, "length": 32}


def recipe(calibration: Any = "lee-background", **evaluate: Any) -> Any:
    return parse_recipe(
        {
            "model": "preset:byte-llama",
            "threads": 1,
            "calibration": {"data": calibration, "windows": 2, "length": 16},
            "steps": [{"method": "llm_drop", "target": "attention", "n": 1}],
            "evaluate": {"perplexity": TINY, "generation": None, "speed": None, **evaluate},
        },
        name="second",
    )


def with_step(step: Any) -> Any:
    steps = parse_recipe({"model": "preset:byte-llama", "steps": [step]}, name="one").steps
    return recipe().model_copy(update={"steps": steps})


def test_fault_C7_it_stands_in_every_report(tmp_path: Path) -> None:
    result = run(recipe(), tmp_path / "out", check=False)
    report = result.report
    found = [stage.measured["second_text"] for stage in report.stages]
    assert [one["recipe"]["data"] for one in found] == ["sklearn-descr"] * 2
    assert found[0]["value"] != report.before.measured["perplexity"]["value"]
    assert found[0]["interval"]["windows"] == 6
    said = [one for one in summary_sentences(report) if one.startswith("Perplexity on a second")]
    assert len(said) == 1 and f"{found[0]['value']:.4g}"[:5] in said[0]
    for page in ("report.md", "report.html"):
        text = (tmp_path / "out" / page).read_text()
        for one in found:
            assert number_text(one["value"]) in text, page
    card = (tmp_path / "out" / "README.md").read_text()
    assert "perplexity on a second text (sklearn-descr)" in card
    assert report.before.notes == []


def test_fault_C7_a_text_that_a_step_sees_is_named() -> None:
    assert seen_text_notes(recipe()) == []
    said = seen_text_notes(recipe(["lee-background", {"text": "sklearn-descr"}]))
    assert len(said) == 1 and said[0].startswith("second_text is measured on sklearn-descr")
    assert seen_text_notes(recipe("lee"))[0].startswith("perplexity is measured on lee")
    trained = with_step({"train": {"data": {"text": "lee"}}})
    assert seen_text_notes(trained)[0].startswith("perplexity is measured on lee, which a step")


def test_texts_that_choose_the_state_of_a_healing_are_named() -> None:
    said = seen_text_notes(with_step({"heal": {"tokens": 512}}))
    assert [one.split()[0] for one in said] == ["perplexity", "second_text"]
    assert all("by which a step chooses the state" in one for one in said)
    assert seen_text_notes(with_step({"heal": {"held_out": "fortunes"}})) == []


def test_it_takes_the_windows_of_perplexity_and_another_text() -> None:
    built = Evaluate(perplexity={**TINY, "data": "lee-background", "encoding": "latin-1"}).built
    assert built["second_text"] == make_metric("second_text", TINY)
    assert Evaluate(perplexity=TINY, second_text={"windows": 5}).built["second_text"].windows == 5


@pytest.mark.parametrize("evaluate", [{"perplexity": None}, {"second_text": None}])
def test_it_is_left_out_where_nobody_wants_it(evaluate: Any) -> None:
    assert "second_text" not in Evaluate(**evaluate).built


def test_too_little_text_stops_a_run_only_where_it_was_asked_for() -> None:
    opened = open_checkpoint("preset:byte-llama")
    subject = Subject(opened.model, opened.tokenizer)
    many = {"windows": 3000, "length": 64}
    metrics, notes = supported(Evaluate(perplexity=many, generation=None, speed=None), subject)
    assert [one.name for one in metrics] == ["perplexity"]
    assert notes[0].startswith("second_text is not measured: it cannot be measured")
    with pytest.raises(InvalidInputError, match="second_text"):
        supported(Evaluate(second_text=many), subject)
