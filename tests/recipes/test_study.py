"""What a study says: its arms, seeds and cells, and what is refused, by its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.recipes.load import resolved
from modwright.recipes.studies import register_study
from modwright.recipes.study import Study, load_study, parse_study

RECIPE = {"model": "preset:tiny-llama", "steps": [{"method": "llm_drop", "n": 1}]}
Load = Callable[[str], Study]

TOP = """\
recipe:
  model: preset:tiny-llama
  steps:
    - {method: llm_drop, n: 1}
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Study:
        (tmp_path / "study.yaml").write_text(text)
        return load_study(tmp_path / "study.yaml")

    return load


def parsed(**keys: Any) -> Study:
    return parse_study({"recipe": RECIPE, **keys})


def test_named_arms_change_keys_of_the_recipe_and_nothing_else() -> None:
    study = parsed(arms={"as it is": None, "two": {"steps.0.n": 2, "dtype": "float64"}})
    one, two = (resolved(cell.recipe) for cell in study.cells)
    assert (one["steps"][0].pop("n"), two["steps"][0].pop("n")) == (1, 2)
    assert (one.pop("dtype"), two.pop("dtype")) == (None, "float64")
    assert (one.pop("title"), two.pop("title")) == ("as it is, seed 0", "two, seed 0")
    assert one == two and one["threads"] == 1


def test_a_sweep_is_the_product_of_its_keys_with_every_seed() -> None:
    arms = {"steps.0.n": [1, 2], "calibration.length": [16, 32]}
    study = parsed(arms=arms, seeds=[3, 5])
    assert study.arms == ["n=1, length=16", "n=1, length=32", "n=2, length=16", "n=2, length=32"]
    assert [cell.seed for cell in study.cells] == [3, 5] * 4
    last = study.cells[-1].recipe
    assert (last.seed, last.steps[0].options["n"], last.calibration.length) == (5, 2, 32)
    assert len({cell.folder.lower() for cell in study.cells}) == 8


def test_folders_differ_where_names_differ_in_odd_letters_alone() -> None:
    arms: dict[str, Any] = dict.fromkeys(("a/b", "a b", "A-B", "a-b", "../x"), None)
    folders = [cell.folder for cell in parsed(arms=arms).cells]
    assert len({folder.lower() for folder in folders}) == 5
    assert all(folder.count("/") == 2 and ".." not in folder for folder in folders)


def test_a_recipe_may_be_a_file_that_others_extend(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: preset:tiny-llama\nsteps: [{method: llm_drop}]\n")
    below = tmp_path / "below"
    below.mkdir()
    for recipe in ("../base.yaml", "{extends: ../base.yaml, seed: 7}"):
        (below / "s.yaml").write_text(f"recipe: {recipe}\narms: {{steps.0.n: [1, 2]}}\n")
        cells = load_study(below / "s.yaml").cells
        assert [cell.recipe.steps[0].options["n"] for cell in cells] == [1, 2]
    assert {cell.seed for cell in cells} == {7}  # the recipe's own


def test_a_study_is_changed_by_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TOP + "arms: {steps.0.n: [1, 2]}\n")
    study = load_study(tmp_path / "s.yaml", ["seeds=[0,1]", "recipe.dtype=float64"])
    assert len(study.cells) == 4 and study.cells[0].recipe.dtype == "float64"


def test_a_study_is_known_by_its_name() -> None:
    with registries_restored():

        @register_study("of-the-test")
        def make() -> dict[str, Any]:
            return {"recipe": RECIPE, "arms": {"steps.0.n": [1, 2]}}

        assert load_study("of-the-test", ["recipe.dtype=float64"]).arms == ["n=1", "n=2"]
        assert load_study("of-the-test").cells[0].recipe.dtype is None
        with pytest.raises(InvalidInputError, match="did you mean 'of-the-test'"):
            load_study("of-the-tests")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("arm: {a: null}\n", 5, "arm: unknown key"),
        ("arms: {}\n", 5, "arms: is empty"),
        ("arms: {steps.0.n: []}\n", 5, "arms.steps.0.n: is empty"),
        ("arms:\n  a: {steps.0.m: 2}\n", 6, "arms.a.steps.0.m, steps.0: "),
        ("arms:\n  a:\n    steps.0.n: 2\n    stepz: 2\n", 8, "stepz: unknown key"),
        ("arms:\n  a: {steps.3.n: 2}\n", 6, "steps has the entries 0 to 0, not '3'"),
        ("arms:\n  a: {steps.0.n.x: 2}\n", 6, "steps.0.n is 1 and has nothing below it"),
        ("arms:\n  a: {model.x: 2}\n", 6, "has nothing below it"),
        ("arms:\n  a: 3\n", 6, "must be a list of values, or a mapping"),
        ("arms:\n  a: {seed: 3}\n", 6, "seed is not changed by an arm; say it in seeds"),
        ("arms:\n  output: [a]\n", 6, "output is not changed by an arm"),
        ("arms:\n  a: {steps..n: 3}\n", 6, "'steps..n' is no dotted key"),
        ("arms:\n  a: null\n  steps.0.n: [1]\n", 6, "is a named arm beside a sweep"),
        ("arms:\n  a: null\n  a: {steps.0.n: 2}\n", 7, "stands in study.yaml line 6 already"),
        ("arms:\n  steps.0.n:\n    - 1\n    - 2\n    - 1\n", 9, "two arms are called 'n=1'"),
        ("arms:\n  steps.0.n:\n    - 1\n    - two\n", 8, "arms.steps.0.n.1, steps.0: "),
        ("seeds: [0, 1.5]\n", 5, "seeds.1: "),
        ("seeds: [0, true]\n", 5, "seeds.1: "),
        ("seeds: ['0']\n", 5, "seeds.0: "),
        ("seeds: 3\n", 5, "seeds: "),
        ("seeds: []\n", 5, "seeds: "),
        ("seeds:\n  - 1\n  - 1\n", 7, "1 stands there twice"),
        ("seeds: [-1]\n", 5, "-1 is below 0"),
        ("workers: 0\n", 5, "workers: "),
        ("keep: {metric: perplexitie}\n", 5, "did you mean 'perplexity'"),
        ("keep: perplexity\n", 5, "keep: must be a mapping with the keys metric"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(load: Load, text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        load(TOP + text)
    told = str(refused.value)
    assert told.startswith(f"study.yaml line {line}, ") and says in told and "\n" not in told


def test_a_study_without_a_recipe_is_refused(load: Load) -> None:
    with pytest.raises(InvalidInputError, match="recipe: is missing"):
        load("arms: {steps.0.n: [1]}\n")
    with pytest.raises(InvalidInputError, match="a mapping with the keys recipe and arms"):
        load("- 1\n")
