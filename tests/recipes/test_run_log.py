"""The log beside the output says what happened when, and stays whatever becomes of the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import modwright.recipes.run as running
import modwright.recipes.steps.method as method_step
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.progress import SILENT
from modwright.recipes import Recipe
from modwright.recipes.load import resolved
from modwright.recipes.run import run
from modwright.recipes.run_log import RunLog, log_path

from .shared import DROP, NOTHING

MakeRecipe = Callable[..., Recipe]
TIMED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|ERROR) (.*)$")


def lines(place: Path) -> list[str]:
    """The messages of a log, first lines only; each must have a time."""
    found = [TIMED.match(line) for line in place.read_text(encoding="utf-8").splitlines()]
    return [match[2] for match in found if match]


def test_a_finished_run_is_told_whole(recipe: MakeRecipe, tmp_path: Path) -> None:
    said: list[str] = []
    done = run(recipe(), tmp_path / "out", check=False, log=said.append)
    assert done.log == tmp_path / "out.log" == log_path(tmp_path / "out")
    info = lines(done.log)
    assert info[0].startswith(f"modwright run into {tmp_path / 'out'}, process ")
    assert info[-1] == "done"
    assert [line for line in info if line in said] == said
    for begin in ("estimate: ", "versions: python ", "machine: threads 1", "recipe, resolved:"):
        assert sum(line.startswith(begin) for line in info) == 1, begin
    for phase in ("second moments", "decompose", "apply and verify", "perplexity", "write"):
        assert any(line.startswith(phase) and "begins" in line for line in info), phase
        ends = [
            line for line in info if line.startswith(phase) and re.search(r" in [\d.]+ s$", line)
        ]
        assert ends and all(re.search(r": (\d+)/\1 in", line) for line in ends), phase
    measured = [line for line in info if line.startswith("measured ")]
    assert [line.split(":")[0] for line in measured] == [
        "measured before",
        "measured 1 llm_drop",
        "measured 2 modegpt",
    ]
    assert f"perplexity {done.report.after.measured['perplexity']['value']}" in measured[-1]


def test_the_resolved_recipe_can_be_copied_out_of_it(recipe: MakeRecipe, tmp_path: Path) -> None:
    asked = recipe(steps=DROP, evaluate=NOTHING)
    run(asked, tmp_path / "out", check=False)
    text = (tmp_path / "out.log").read_text()
    after = text.partition("recipe, resolved:\n")[2]
    info = "\n".join(
        after.splitlines()[: [bool(TIMED.match(x)) for x in after.splitlines()].index(True)]
    )
    assert yaml.safe_load(info) == {**resolved(asked), "output": ""}


def test_what_fails_is_told_with_its_traceback(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the machine is\non fire")

    with monkeypatch.context() as patch:
        patch.setattr(method_step, "apply_plan", fail)
        with pytest.raises(RuntimeError):
            run(recipe(steps=DROP, evaluate=NOTHING), tmp_path / "out")
    info = lines(tmp_path / "out.log")
    assert info[-1] == "RuntimeError: the machine is on fire"
    assert "apply and verify: stopped at 0/1" in info
    text = (tmp_path / "out.log").read_text()
    assert "Traceback (most recent call last)" in text and "test_run_log.py" in text

    # The run that goes on adds to it.
    run(recipe(steps=DROP, evaluate=NOTHING), tmp_path / "out", check=False)
    again = lines(tmp_path / "out.log")
    assert again[: len(info)] == info
    assert again[-1] == "done"


def test_a_refusal_on_the_way_is_told(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InvalidInputError("not with me")

    monkeypatch.setattr(method_step, "apply_plan", refuse)
    with pytest.raises(InvalidInputError):
        run(recipe(steps=DROP, evaluate=NOTHING), tmp_path / "out")
    assert lines(tmp_path / "out.log")[-1] == "InvalidInputError: not with me"


def test_a_refusal_before_work_leaves_no_file(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        run(recipe(calibration={"data": "gone", "length": 8}), tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    # Where a log stands already, it is told there.
    (tmp_path / "out.log").write_text("of yesterday\n")
    with pytest.raises(InvalidInputError):
        run(recipe(calibration={"data": "gone", "length": 8}), tmp_path / "out")
    text = (tmp_path / "out.log").read_text()
    assert text.startswith("of yesterday\n")
    assert lines(tmp_path / "out.log")[-1].startswith(
        "InvalidInputError: calibration: unknown text 'gone'"
    )


def test_what_nobody_foresaw_leaves_one_even_before_work(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("where none was thought of")

    monkeypatch.setattr(running, "check_finite", fail)
    with pytest.raises(ZeroDivisionError):
        run(recipe(), tmp_path / "out")
    assert "Traceback" in (tmp_path / "out.log").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.log"]


def test_a_new_run_begins_a_new_log(recipe: MakeRecipe, tmp_path: Path) -> None:
    asked = recipe(steps=DROP, evaluate=NOTHING)
    run(asked, tmp_path / "out", check=False)
    run(asked, tmp_path / "out", check=False, force=True)
    assert sum(line.startswith("modwright run into") for line in lines(tmp_path / "out.log")) == 1


def test_the_second_of_two_runs_at_once_leaves_the_log_of_the_first(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    asked = recipe(steps=DROP, evaluate=NOTHING)

    def interfere(line: str) -> None:
        if line.startswith("step 1"):
            with pytest.raises(CheckpointError, match="another run"):
                run(asked, tmp_path / "out", check=False)

    run(asked, tmp_path / "out", check=False, log=interfere)
    assert not any("another run" in line for line in lines(tmp_path / "out.log"))


def test_a_log_that_cannot_be_written_stops_nothing(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.log").mkdir()
    done = run(recipe(steps=DROP, evaluate=NOTHING), tmp_path / "out", check=False)
    assert (done.output / "config.json").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_long_phases_say_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("modwright.recipes.run_log.time.monotonic", lambda: now[0])
    run_log = RunLog(tmp_path / "out")
    with run_log.open():
        run_log.begin(goes_on=False)
        with run_log.progress(SILENT).phase("walk", 10) as task:
            for _ in range(10):
                now[0] += 20
                task.advance()
    said = [line for line in lines(run_log.path) if line.startswith("walk")]
    assert said == [
        "walk: begins, 10 steps",
        "walk: 2/10",
        "walk: 4/10",
        "walk: 6/10",
        "walk: 8/10",
        "walk: 10/10 in 200.0 s",
    ]
