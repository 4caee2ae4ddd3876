"""What a recipe cannot do is refused before anything is measured, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import modwright.recipes.run as running
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.recipes import Recipe
from modwright.recipes.run import run
from wordy import write_checkpoint

from .shared import DROP, NOTHING, no_work, snapshot, weights

MakeRecipe = Callable[..., Recipe]
GONE = {"data": "gone.txt", "length": 8}


def test_a_model_without_tokenizer_cannot_be_calibrated_on_text(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    with pytest.raises(InvalidInputError) as caught:
        run(recipe(model="preset:tiny-llama"), tmp_path / "out")
    assert str(caught.value).startswith("calibration: llm_drop calibrates on text, and preset:tiny")
    assert "tokenizer" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers(
    recipe: MakeRecipe, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    model = write_checkpoint(tiny("tiny-llama"), tmp_path / "broken")
    stored = weights(model)
    stored["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(stored, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* NaN"):
        run(recipe(model=str(model)), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("changed", "info"),
    [
        ({"calibration": GONE}, r"^calibration: unknown text"),
        ({"calibration": {"length": 257}}, r"calibration: length is 257; .* 2\.\.256"),
        (
            {"steps": [*DROP, {"method": "modegpt", "calibration": GONE}]},
            r"steps\.1\.calibration: unknown text 'gone\.txt'; valid values: fortunes, lee, ",
        ),
        ({"evaluate": {"perplexity": {"data": "gone.txt"}}}, r"evaluate\.perplexity: unknown text"),
        ({"steps": [{"method": "llm_drop", "n": 99}]}, r"steps\.0: llm_drop: n=99.* 0 to 4"),
        ({"steps": [*DROP, {"method": "llm_drop", "n": 5}]}, r"steps\.1: llm_drop: n=5.* 0 to 4"),
    ],
)
def test_what_cannot_be_done_is_refused_before_work(
    changed: dict[str, Any],
    info: str,
    recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_work(monkeypatch)
    with pytest.raises(InvalidInputError, match=info):
        run(recipe(**changed), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_windows_longer_than_learned_positions(
    recipe: MakeRecipe, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the refusal the table of positions is read past its end."""
    no_work(monkeypatch)
    model = write_checkpoint(tiny("tiny-gpt2", n_positions=16), tmp_path / "gpt2")
    with pytest.raises(
        InvalidInputError, match=r"length is 32; the model has positions for 2\.\.16"
    ):
        run(recipe(model=str(model)), tmp_path / "out")


def test_a_perplexity_window_that_does_not_fit_says_which_key(
    recipe: MakeRecipe, wordy_text: Path, tmp_path: Path
) -> None:
    asked = recipe(evaluate={"perplexity": {"data": str(wordy_text), "windows": 9999, "length": 8}})
    with pytest.raises(
        InvalidInputError, match=r"^evaluate\.perplexity: text .* valid values of windows"
    ):
        run(asked, tmp_path / "out")


@pytest.mark.contract("C2")
def test_places_that_are_no_output(
    recipe: MakeRecipe,
    wordy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_work(monkeypatch)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    source = snapshot(wordy_model)
    for place, info in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "cannot"),
        (Path(), "working directory"),
        (Path("/"), "below it"),
        (wordy_model, "the model that the recipe begins with"),
    ]:
        with pytest.raises(CheckpointError, match=info):
            run(recipe(), place, force=True)
    assert snapshot(wordy_model) == source
    assert snapshot(tmp_path) == {"file": b"x", "empty": b"(folder)"}


def test_an_output_is_needed(recipe: MakeRecipe) -> None:
    with pytest.raises(InvalidInputError, match="-o"):
        run(recipe())


def test_the_recipe_can_name_the_output(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run(recipe(output="~/deep/out", steps=DROP, evaluate=NOTHING), check=False)
    assert done.output == tmp_path / "deep" / "out"
    assert (tmp_path / "deep" / "out" / "config.json").exists()
    assert yaml.safe_load((done.output / "recipe.yaml").read_text())["output"] == ""


def test_too_little_memory_is_found_before_work(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)

    def memory_runs_short(model: Any) -> None:
        monkeypatch.setattr("modwright.checkpoint.memory.available_bytes", lambda: 1000)

    monkeypatch.setattr(running, "check_finite", memory_runs_short)
    with pytest.raises(InvalidInputError, match=r"needs about .* of memory"):
        run(recipe(), tmp_path / "out")
