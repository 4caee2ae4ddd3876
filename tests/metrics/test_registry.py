"""A metric is one file: what a test registers is known to recipes, commands, reports and docs."""

from __future__ import annotations

import copy
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import yaml
from pydantic import Field

import modwright
from modwright.cli.entry import run_command
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.core.registry import registries_restored
from modwright.metrics.registry import (
    METRICS,
    Metric,
    Result,
    Subject,
    in_order,
    make_metric,
    metric,
    metric_names,
    old_keys,
    stored,
)
from modwright.recipes.load import parse_recipe, recipe_schema, resolved
from modwright.recipes.run import run
from modwright.report import Report, Stage, model_card, render_html, render_markdown
from modwright.report.summary import summary_sentences


@pytest.fixture
def spread() -> Iterator[type[Metric]]:
    """A metric that no line of the package knows."""
    with registries_restored():

        @metric("logit_spread", unit="logits", direction="lower")
        @dataclass(frozen=True)
        class LogitSpread(Metric):
            """How far the logits of a few tokens are spread.

            Attributes:
                tokens: how many tokens are read.
            """

            tokens: Annotated[int, Field(ge=1)] = 4

            def unsupported(self, subject: Subject) -> str | None:
                if not subject.writes_text:
                    return f"needs a model that writes, and {subject.name} does not"
                return None

            def measure(self, subject: Subject, progress: Progress = SILENT) -> Result:
                ids = torch.arange(self.tokens)[None]
                with torch.no_grad():
                    value = float(subject.model(input_ids=ids).logits.float().std())
                return Result(value, {"tokens": self.tokens})

        yield LogitSpread


def test_what_a_test_registers_is_measured_by_a_recipe_and_stands_in_every_page(
    spread: type[Metric], wordy_model: Path, tmp_path: Path
) -> None:
    nothing = {kind.name: None for kind in in_order() if kind.by_default}
    tree = {
        "model": str(wordy_model),
        "threads": 1,
        "steps": [{"method": "drop", "parts": "attention[0]"}],
        "evaluate": {**nothing, "length": 16, "logit_spread": {"tokens": 3}},
    }
    asked = parse_recipe(tree)
    assert asked.evaluate.built["logit_spread"].tokens == 3
    assert resolved(asked)["evaluate"]["logit_spread"] == {"tokens": 3}
    assert "logit_spread" in recipe_schema()["$defs"]["Evaluate"]["properties"]
    said: list[str] = []
    report = run(asked, tmp_path / "out", check=False, log=said.append).report
    before, after = (stage.measured["logit_spread"] for stage in report.stages)
    assert before["recipe"] == {"tokens": 3} and before["finite"] is True
    assert before["value"] != after["value"]
    assert f"Logit spread, logits {before['value']:.4f}" in said
    for page in (render_html(report), render_markdown(report), model_card(report)):
        assert "Logit spread, logits" in page
        assert f"{before['value']:.4f}" in page and f"{after['value']:.4f}" in page
    assert "Quality was measured as logit spread only" in model_card(report)
    assert "lower is better" in render_html(report)
    lines = [line for line in summary_sentences(report) if line.startswith("Logit spread")]
    course = "rose" if after["value"] > before["value"] else "fell"
    assert len(lines) == 1 and f"{course} from {before['value']:.4f}" in lines[0]


def test_what_a_test_registers_is_known_to_the_command(
    spread: type[Metric], wordy_model: Path, wordy_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"eval {wordy_model} --text {wordy_text} --windows 2 --length 16"
    code = run_command(shlex.split(f"{line} --metric 'logit_spread: {{tokens: 2}}' --json"))
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["logit_spread"]["recipe"] == {"tokens": 2}
    assert found["perplexity"]["value"] > 0
    assert run_command(shlex.split(f"{line} --metric logit_spread")) == 0
    printed = capsys.readouterr().out
    assert "Logit spread, logits" in printed and "tokens 4" in printed
    for wrong, told in (
        ("'logit_spread: {token: 2}'", "did you mean 'tokens'?"),
        ("'logit_spread: {tokens: 0}'", "must be 1 or more, not 0"),
        ("logit_spred", "did you mean 'logit_spread'?"),
        ("'[1]'", "write NAME or"),
    ):
        assert run_command(shlex.split(f"{line} --metric {wrong}")) == 2
        err = capsys.readouterr().err
        assert told in err and len(err.splitlines()) == 1


def test_what_a_test_registers_is_in_the_tables_of_the_docs(spread: type[Metric]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "hooks"))
    try:
        import tables
    finally:
        sys.path.pop(0)
    rows = tables.MAKERS["metrics"]().splitlines()
    (row,) = [row for row in rows if "`logit_spread`" in row]
    assert "How far the logits of a few tokens are spread." in row
    assert "logits" in row and "lower" in row and "tokens" in row
    assert "### `evaluate: {logit_spread: …}`" in tables.MAKERS["recipe-keys"]()


def test_a_model_that_cannot_have_it_is_refused_before_any_work(
    spread: type[Metric], tiny: Any, tmp_path: Path
) -> None:
    tiny("tiny-bert", auto="AutoModel").save_pretrained(tmp_path / "encoder")
    steps = [{"method": "drop", "parts": "attention[0]"}]
    tree = {"model": str(tmp_path / "encoder"), "steps": steps}
    asked = parse_recipe({**tree, "evaluate": {"logit_spread": True}})
    with pytest.raises(InvalidInputError, match=r"evaluate\.logit_spread: it needs a model that"):
        run(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The registry


def test_names_and_options_are_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown metric 'perplexty'.*did you mean"):
        make_metric("perplexty")
    with pytest.raises(InvalidInputError, match="windows: must be 1 or more, not 0"):
        make_metric("perplexity", {"windows": 0})
    with pytest.raises(InvalidInputError, match="needs the option tasks"):
        make_metric("lm_eval")
    assert make_metric("lm_eval", {"tasks": ["a", "b"]}).tasks == ("a", "b")


@pytest.mark.parametrize(
    ("facts", "base", "told"),
    [
        ({"colums": ()}, Metric, "unknown fact 'colums'"),
        ({"direction": "up"}, Metric, "direction of metric"),
        ({}, object, "derives from Metric"),
    ],
)
def test_what_is_no_metric_is_refused(facts: dict[str, Any], base: type, told: str) -> None:
    with registries_restored(), pytest.raises(ValueError, match=told):

        @metric("odd", **{"unit": "", "direction": None, **facts})
        @dataclass(frozen=True)
        class Odd(base):  # type: ignore[misc]
            pass


def test_a_taken_name_is_refused() -> None:
    with registries_restored(), pytest.raises(InvalidInputError, match="registered already"):

        @metric("perplexity", unit="", direction=None)
        @dataclass(frozen=True)
        class Second(Metric):
            pass


def test_every_metric_says_what_pages_need() -> None:
    for kind in in_order():
        assert kind.title and (kind.__doc__ or "").strip()
        assert kind.defaults_from in ("", *metric_names())
        for column in kind.columns:
            assert column.group == kind.name and column.meaning.endswith(".")
    names = [column.name for kind in in_order() for column in kind.columns]
    assert len(set(names)) == len(names)
    assert old_keys() == {
        "agreement": "divergence",
        "harness": "lm_eval",
        "generate": "generation",
    }


def test_a_result_is_stored_without_its_time_and_what_is_none() -> None:
    @dataclass(frozen=True)
    class Found:
        value: float
        other: float | None
        seconds: float

    assert stored(Found(1.0, None, 3.0)) == {"value": 1.0}
    assert stored(Result(float("nan")))["finite"] is False


def test_a_number_that_is_not_finite_and_one_measured_otherwise_are_said(
    spread: type[Metric],
) -> None:
    def stage(name: str, value: float, tokens: int = 4) -> Stage:
        measured = {"logit_spread": stored(Result(value, {"tokens": tokens}))}
        return Stage(name, None if name == "before" else "x", measured=measured)

    def said(*stages: Stage) -> str:
        return " ".join(summary_sentences(Report("r", stages=list(stages))))

    before = stage("before", 2.0)
    assert "Logit spread, logits is not a finite number." in said(
        before, stage("1 x", float("nan"))
    )
    assert "measured differently (tokens)" in said(before, stage("1 x", 3.0, tokens=5))
    assert "stayed at 2.0000" in said(before, stage("1 x", 2.0))
    assert "rose from 2.0000 to 3.0000 (× 1.50)" in said(before, stage("1 x", 3.0))


def test_metrics_of_a_plugin_are_measured_by_the_recipe_that_names_it(
    wordy_model: Path, tmp_path: Path
) -> None:
    from modwright.core.plugins import plugins_restored

    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from modwright.metrics import Metric, Result, metric\n"
        "@metric('own_number', unit='', direction='higher')\n"
        "@dataclass(frozen=True)\n"
        "class OwnNumber(Metric):\n"
        '    """A number of a plugin."""\n'
        "    def measure(self, subject, progress=None):\n"
        "        return Result(7.0)\n"
    )
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(wordy_model),
                "plugins": ["mine.py"],
                "steps": [{"method": "drop", "parts": "attention[0]"}],
                "evaluate": {"own_number": True},
            }
        )
    )
    from modwright.recipes import load_recipe

    with plugins_restored():
        asked = load_recipe(tmp_path / "r.yaml")
        assert asked.evaluate.built["own_number"].measure(Subject(None)).value == 7.0
    assert "own_number" not in METRICS


def test_metrics_leave_a_model_as_it_is(tiny: Any, wordy_model: Path, wordy_text: Path) -> None:
    opened = modwright.open(str(wordy_model))
    before = copy.deepcopy(opened.model.state_dict())
    made = make_metric("perplexity", {"data": str(wordy_text), "windows": 2, "length": 16})
    made.measure(Subject(opened.model, opened.tokenizer))
    after = opened.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
