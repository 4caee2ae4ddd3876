"""The packaged model lab-lm: what its card says, and that its parts belong together."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

import modwright
from modwright.calibration.trajectory import Trajectory
from modwright.checkpoint import Checkpoint
from modwright.data.text import tokenize_text
from modwright.metrics.perplexity import PerplexityRecipe, perplexity
from modwright.recipes.composed import open_model
from modwright.recipes.load import load_recipe
from modwright.recipes.runner import torch_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAKING = runpy.run_path(str(ROOT / "examples" / "lab_lm.py"))


@pytest.fixture(scope="module")
def lab_lm() -> Checkpoint:
    return modwright.open("lab-lm", dtype="float32")


@pytest.fixture(scope="module")
def place(lab_lm: Checkpoint) -> Path:
    assert lab_lm.source.path is not None
    return lab_lm.source.path


@pytest.fixture(scope="module")
def recorded(place: Path) -> Trajectory:
    return Trajectory.load(place / MAKING["RECORDED"])


@pytest.fixture(scope="module")
def rows(lab_lm: Checkpoint) -> Any:
    return MAKING["held_out"](lab_lm.tokenizer)


def test_it_is_small_and_stored_in_float16(lab_lm: Checkpoint, place: Path) -> None:
    sizes = {file: file.stat().st_size for file in place.rglob("*") if file.is_file()}
    assert sum(sizes.values()) <= 4_000_000
    assert sizes[place / MAKING["RECORDED"]] <= 200_000
    assert lab_lm.model.num_parameters() == 1_705_600
    assert modwright.open("lab-lm").model.dtype is torch.float16
    assert "lee-background" in (place / MAKING["CARD"]).read_text(encoding="utf-8")


def test_it_writes_in_plain_transformers(place: Path) -> None:
    write = pipeline("text-generation", str(place))
    (written,) = write("The government", max_new_tokens=8, do_sample=False)
    assert len(written["generated_text"]) > len("The government") + 8


def test_its_card_has_the_perplexity_that_is_measured(lab_lm: Checkpoint, place: Path) -> None:
    card = (place / MAKING["CARD"]).read_text(encoding="utf-8")
    said = re.search(r"\| `lee`, 64 windows of 128 \| ([\d.]+) \|", card)
    assert said is not None
    found = perplexity(lab_lm.model, lab_lm.tokenizer, PerplexityRecipe("lee", 64, 128))
    assert found.value == pytest.approx(float(said[1]), rel=1e-3)


def test_the_last_record_is_of_the_weights(
    lab_lm: Checkpoint, recorded: Trajectory, rows: torch.Tensor
) -> None:
    assert recorded.steps[:4] == (0, 1, 2, 4) and recorded.steps[-1] == 650
    with torch.no_grad():
        found = MAKING["quantities"](rows)(lab_lm.model)
    assert found.keys() == recorded.values.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, recorded.values[name][-1], rtol=0.01, atol=0.01)


def test_the_recipe_begins_where_the_record_does(
    lab_lm: Checkpoint, place: Path, recorded: Trajectory, rows: torch.Tensor
) -> None:
    recipe = load_recipe(place / MAKING["RECIPE"])
    with torch_settings(recipe):
        start = open_model(recipe)
    assert start.tokenizer.get_vocab() == lab_lm.tokenizer.get_vocab()
    with torch.no_grad():
        found = MAKING["quantities"](rows)(start.model)
    for name, value in found.items():
        torch.testing.assert_close(value, recorded.values[name][0], rtol=1e-4, atol=1e-5)
    learned = tokenize_text(start.tokenizer, recipe.steps[0].built.data["text"])
    assert f"{len(learned.ids):,} tokens" in (place / MAKING["CARD"]).read_text(encoding="utf-8")


def test_its_example_trains_it(
    place: Path, recorded: Trajectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lab_lm.py", "-o", str(tmp_path / "out"), "--steps", "2"])
    MAKING["main"]()
    found = Trajectory.load(tmp_path / "out" / MAKING["RECORDED"])
    assert found.steps == (0, 1, 2)
    for name, value in found.values.items():
        torch.testing.assert_close(value, recorded.values[name][:3], rtol=1e-3, atol=1e-4)
    again = modwright.open(tmp_path / "out")
    assert again.model.config.to_diff_dict() == modwright.open("lab-lm").model.config.to_diff_dict()
    for name in (MAKING["RECIPE"], MAKING["CARD"]):
        assert (tmp_path / "out" / name).read_bytes() == (place / name).read_bytes(), name


@pytest.mark.parametrize(
    ("slug", "runs"), [("lab-lm", "examples/lab_lm.py"), ("smt", "tests/evidence.py smt")]
)
def test_make_figures_takes_the_example_of_a_model(slug: str, runs: str) -> None:
    command = ["make", "--no-print-directory", "-n", "figures", f"SLUG={slug}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1].endswith(f"/python {runs}")
