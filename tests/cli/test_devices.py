"""``--device`` and ``--dtype`` of the commands that run a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Command

LINES = {
    "eval": "eval {model} --text {text} --length 8 --windows 1",
    "cost": "cost {model} --length 8",
    "plan": "plan recipe.yaml",
    "run": "run recipe.yaml -o out",
    "edit": "edit drop {model} -o out --parts attention[0] --no-eval",
    "upscale": "upscale {model} small.png -o large.png",
}


def line(name: str, **places: Any) -> str:
    return LINES[name].format(**places)


@pytest.mark.parametrize("name", LINES)
def test_a_device_that_is_not_there_is_refused_in_one_line(
    name: str, command: Command, recipe_file: Path, wordy_model: Path, wordy_text: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(recipe_file.parent / "small.png")
    done = command(f"{line(name, model=wordy_model, text=wordy_text)} --device nowhere")
    assert (done.code, len(done.err.strip().splitlines()[-1:])) == (2, 1), done.err
    assert "device 'nowhere' cannot be used; valid values: cpu" in done.err.splitlines()[-1]
    assert not (recipe_file.parent / "out").exists()


def test_a_run_notes_device_and_type_in_the_recipe_beside_the_result(
    command: Command, recipe_file: Path
) -> None:
    nothing = "--set evaluate.speed=null --set evaluate.generate=null"
    done = command(f"run recipe.yaml -o out --device cpu --dtype bfloat16 --no-check {nothing}")
    assert done.code == 0, done.err
    stored = yaml.safe_load((recipe_file.parent / "out" / "recipe.yaml").read_text())
    assert (stored["device"], stored["dtype"]) == ("cpu", "bfloat16")
    report = json.loads((recipe_file.parent / "out" / "report.json").read_text())
    assert report["environment"]["dtype"] == "bfloat16"
    for stage in report["stages"]:
        assert stage["measured"]["perplexity"]["recipe"]["dtype"] == "bfloat16"


def test_a_type_is_that_of_what_is_measured(
    command: Command, wordy_model: Path, wordy_text: Path
) -> None:
    done = command(
        f"{line('eval', model=wordy_model, text=wordy_text)} --device cpu --dtype float64 --json"
    )
    assert json.loads(done.out)["perplexity"]["recipe"]["dtype"] == "float64"
