"""A recipe run by two processes: both carry out the steps, the main one measures and writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch import Ended, launch
from modwright.recipes import Recipe, load_recipe
from modwright.recipes.load import resolved
from modwright.recipes.run import run
from modwright.report import read_report

from .shared import NOTHING, config_of, weights

pytestmark = pytest.mark.slow

MakeRecipe = Callable[..., Recipe]
WORKER = str(Path(__file__).with_name("share_worker.py"))
# Batches of two, the last of one: each process walks two of the four.
SEVEN = {"windows": 7, "length": 16, "batch_size": 2}


@pytest.fixture
def written(recipe: MakeRecipe, wordy_text: Path, tmp_path: Path) -> Callable[..., Path]:
    """A recipe file of two kinds of steps, the first of which walks twice."""

    def write(**changed: Any) -> Path:
        steps = [
            {"method": "llm_drop", "n": 2, "mode": "iterative"},
            {"method": "modegpt", "sparsity": 0.2},
        ]
        asked = {
            "steps": steps,
            "calibration": {"data": str(wordy_text), **SEVEN},
            "evaluate": NOTHING,
            **changed,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(resolved(recipe(**asked))))
        return file

    return write


def together(file: Path, **trouble: str) -> list[Ended]:
    command = [WORKER, "run", file.name, "-o", "out", "--no-check"]
    return launch(command, cwd=file.parent, SHARE_TROUBLE=json.dumps(trouble))


def same_result(one: Path, other: Path) -> None:
    """Equal but for the last bits: sums are taken in another order."""
    assert config_of(one) == config_of(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=1e-5, atol=1e-6), name
    reports = [read_report(place) for place in (one, other)]
    assert [s.name for s in reports[0].stages] == [s.name for s in reports[1].stages]
    removed = [[s.reasons.get("removed") for s in report.stages] for report in reports]
    assert removed[0] == removed[1]


def test_the_result_is_that_of_one_process(written: Callable[..., Path], tmp_path: Path) -> None:
    file = written()
    main, other = together(file)
    assert main.code == 0, main.err
    assert (other.code, other.out, other.err) == (0, "", "")
    assert "step 2 of 2" in main.err and "MoDeGPT" in main.out
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["out", "out.log", "recipe.yaml"]
    assert "2 processes calibrate together" in (tmp_path / "out.log").read_text()
    same_result(tmp_path / "out", run(load_recipe(file), tmp_path / "alone", check=False).output)

    again = together(file)
    assert [one.code for one in again] == [0, 0]
    assert "holds the result of this recipe already" in again[0].err
    assert again[1].err == again[1].out == ""


def test_a_refusal_is_said_once(written: Callable[..., Path], tmp_path: Path) -> None:
    file = written(model="preset:tiny-llama")
    main, other = together(file)
    assert main.code == other.code == 2
    assert "calibration: llm_drop calibrates on text" in main.err.splitlines()[-1]
    assert (other.out, other.err) == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_mistake_in_the_recipe_is_said_once(written: Callable[..., Path]) -> None:
    file = written()
    file.write_text(file.read_text().replace("n: 2", "n: two"))
    main, other = together(file)
    assert main.code == other.code == 2
    assert main.err.startswith("modwright: ") and len(main.err.splitlines()) == 1
    assert (other.out, other.err) == ("", "")


def with_plugin(place: Path, model: Path, plugin: str) -> Path:
    """A recipe of one step, whose method a plugin brings."""
    shutil.copy(Path(__file__).parents[1] / "users_plugin.py", place / "mine.py")
    steps = [{"method": "users_method", "block": 0}]
    tree = {"model": str(model), "plugins": [plugin], "steps": steps, "evaluate": NOTHING}
    (place / "recipe.yaml").write_text(yaml.safe_dump({**tree, "threads": 1}))
    return place / "recipe.yaml"


def test_plugins_are_known_to_every_process(wordy_model: Path, tmp_path: Path) -> None:
    main, other = together(with_plugin(tmp_path, wordy_model, "mine.py"))
    assert main.code == 0, main.err
    assert (other.code, other.out, other.err) == (0, "", "")
    assert "users_tanh" in json.dumps(config_of(tmp_path / "out"))


def test_a_plugin_that_is_not_there_is_said_once(wordy_model: Path, tmp_path: Path) -> None:
    main, other = together(with_plugin(tmp_path, wordy_model, "gone.py"))
    assert main.code == other.code == 2
    (line,) = main.err.splitlines()
    assert line.startswith("modwright: recipe.yaml line ") and "plugins.0: plugin" in line
    assert (other.out, other.err) == ("", "")


@pytest.mark.parametrize("place", ["opening", "walking", "planning"])
def test_what_fails_in_another_process_is_said_by_the_main_one(
    place: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    file = written()
    main, other = together(file, process="1", place=place, kind="refuse")
    assert main.code == other.code == 2
    assert main.err.splitlines()[-1] == "modwright: process 1: trouble is asked for here"
    assert (other.out, other.err) == ("", "")
    if place != "opening":  # work had begun, so there is a log, with the other's traceback
        log = (tmp_path / "out.log").read_text()
        assert "ProcessFailed: process 1: trouble is asked for here" in log
        assert "share_worker.py" in log


def test_the_main_process_fails_while_the_others_wait(written: Callable[..., Path]) -> None:
    main, other = together(written(), process="0", place="measuring", kind="refuse")
    assert main.code == other.code == 2
    assert main.err.splitlines()[-1] == "modwright: trouble is asked for here"
    assert (other.out, other.err) == ("", "")


@pytest.mark.parametrize(
    ("gone", "place"), [("0", "measuring"), ("1", "walking")], ids=["main", "other"]
)
def test_who_is_killed_is_missed_and_the_run_goes_on_later(
    gone: str, place: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    file = written()
    ended = together(file, process=gone, place=place, kind="kill")
    assert ended[int(gone)].code == -9
    left = ended[1 - int(gone)]
    assert left.code == 1
    last = left.err.splitlines()[-1]
    assert last.startswith("modwright: process ") and "another process of this run is gone" in last
    assert "Traceback" not in left.err
    main, other = together(file)
    assert (main.code, other.code) == (0, 0), main.err
    same_result(tmp_path / "out", run(load_recipe(file), tmp_path / "a", check=False).output)
