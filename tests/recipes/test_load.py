"""A recipe file is taken as it is meant, or refused with its place, its value and what is valid."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from modwright.core.errors import CheckpointError, ModwrightError
from modwright.data.texts import default_texts
from modwright.recipes import load_recipe
from modwright.recipes.load import resolved
from modwright.recipes.schema import Step

from .mistakes import MISTAKES, STEP


def write(place: Path, text: str, name: str = "r.yaml") -> Path:
    file = place / name
    file.write_text(dedent(text))
    return file


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(ModwrightError) as caught:
        load_recipe(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# What is taken


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    found = load_recipe(write(tmp_path, "model: here\n" + STEP))
    assert found.steps == [Step(method="llm_drop", options={"n": 1})]
    assert (found.dtype, found.seed, found.threads, found.output) == (None, 0, None, "")
    assert list(found.evaluate.built) == [
        "perplexity",
        "second_text",
        "speed",
        "generation",
    ]
    assert found.calibration.data == default_texts() == ["lee-background", "python-topics"]


def test_options_stand_beside_the_method_or_together(tmp_path: Path) -> None:
    beside = write(tmp_path, "model: m\nsteps:\n  - {method: llm_drop, n: 2, target: mlp}\n")
    inside = write(
        tmp_path,
        "model: m\nsteps:\n  - {method: llm_drop, options: {n: 2, target: mlp}}\n",
        "i.yaml",
    )
    assert load_recipe(beside) == load_recipe(inside)


def test_a_step_can_have_calibration_of_its_own(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
        model: m
        calibration: {windows: 5}
        steps:
          - {method: llm_drop, n: 1}
          - {method: modegpt, calibration: {windows: 7}}
        """,
    )
    first, second = resolved(load_recipe(file))["steps"]
    assert (first["calibration"]["windows"], second["calibration"]["windows"]) == (5, 7)


def test_null_leaves_a_measurement_out(tmp_path: Path) -> None:
    found = load_recipe(write(tmp_path, "model: m\nevaluate: {speed: null}\n" + STEP))
    assert list(found.evaluate.built) == ["perplexity", "second_text", "generation"]


def test_anchors_and_merged_keys_are_plain_yaml(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
        model: m
        calibration: &text {data: words.txt, windows: 3}
        steps:
          - method: llm_drop
            n: 1
            calibration: {<<: *text, windows: 9}
          - {method: modegpt, calibration: *text}
        """,
    )
    found = load_recipe(file)
    assert found.steps[0].calibration is not None
    assert (found.steps[0].calibration.data, found.steps[0].calibration.windows) == ("words.txt", 9)
    assert found.steps[1].calibration == found.calibration


def test_the_example_recipe_loads() -> None:
    example = Path(__file__).parents[2] / "examples" / "demo.yaml"
    steps = [step.method for step in load_recipe(example).steps]
    assert steps == ["llm_drop", "modegpt", "heal", "export"]


# What is refused


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained_in_one_line(name: str, tmp_path: Path) -> None:
    text, info = MISTAKES[name]
    message = refusal(write(tmp_path, text))
    for part in info:
        assert part in message


def test_the_line_is_that_of_the_option_at_fault(tmp_path: Path) -> None:
    """Not that of an option whose name occurs somewhere in the message, such as n."""
    options = ["n: 1", "mode: one_shot", "target: block"]
    for wrong in ("consecutive: 7", "drop_norm: maybe", "lists: 3", "tarqet: mlp"):
        for at in range(len(options) + 1):
            lines = [*options[:at], wrong, *options[at:]]
            body = "".join(f"    {line}\n" for line in lines)
            message = refusal(write(tmp_path, "model: m\nsteps:\n  - method: llm_drop\n" + body))
            assert f"r.yaml line {4 + at}, steps.0" in message


# Files


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, STEP, "recipe.yaml")
    message = refusal(tmp_path / "recpie.yml")
    assert "no such file" in message
    assert str(tmp_path / "recipe.yaml") in message
    assert "did you mean" not in refusal(tmp_path / "something-else.yaml")


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(CheckpointError, match="not text in UTF-8"):
        load_recipe(file)


# extends

BASE = """\
model: m
title: base
calibration: {windows: 4, length: 16}
steps:
  - {method: llm_drop, n: 1}
  - {method: modegpt, sparsity: 0.1}
evaluate:
  perplexity: {windows: 2}
  speed: null
"""


def test_extends_changes_mappings_key_by_key_and_lists_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path, BASE, "shared/base.yaml")
    file = write(
        tmp_path,
        """\
        extends: shared/base.yaml
        calibration: {length: 99}
        evaluate: {perplexity: {stride: 5}}
        steps: [{method: modegpt}]
        """,
    )
    found = load_recipe(file)
    assert (found.model, found.title) == ("m", "base")
    assert (found.calibration.windows, found.calibration.length) == (4, 99)
    quality = found.evaluate.built["perplexity"]
    assert (quality.windows, quality.stride) == (2, 5)
    assert "speed" not in found.evaluate.built
    assert [step.method for step in found.steps] == ["modegpt"]


def test_extends_is_a_chain(tmp_path: Path) -> None:
    write(tmp_path, BASE, "a.yaml")
    write(tmp_path, "extends: a.yaml\ntitle: b\nseed: 3\n", "b.yaml")
    found = load_recipe(write(tmp_path, "extends: b.yaml\ntitle: c\n", "c.yaml"))
    assert (found.title, found.seed, found.model) == ("c", 3, "m")


def test_a_mistake_is_placed_in_the_file_that_makes_it(tmp_path: Path) -> None:
    write(tmp_path, BASE.replace("n: 1", "n: -1").replace("windows: 4", "windows: 0"), "base.yaml")
    child = write(tmp_path, "extends: base.yaml\ntitle: child\n")
    assert "base.yaml line 3, calibration.windows" in refusal(child)
    child = write(tmp_path, "extends: base.yaml\ncalibration: {windows: 4}\n")
    assert "base.yaml line 5, steps.0" in refusal(child)
    child = write(tmp_path, "extends: base.yaml\ncalibration:\n  windows: many\n")
    assert "r.yaml line 3, calibration.windows" in refusal(child)
    steps = "steps:\n  - {method: llm_drop, n: -2}\n"
    child = write(tmp_path, "extends: base.yaml\ncalibration: {windows: 4}\n" + steps)
    assert "r.yaml line 4, steps.0" in refusal(child)


def test_extending_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "extends: bsae.yaml\n"))
    assert "bsae.yaml" in message
    assert "r.yaml extends" in message


# --set


def test_set_changes_values_and_reads_them_as_yaml(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    found = load_recipe(
        file,
        [
            "steps.0.n=3",
            "steps.1.pairs=[mlp]",
            "steps.1.calibration.windows=8",
            "evaluate.generate=null",
            "evaluate.speed.prompt=5",
            "title=a = b",
            "steps.0.n=2",
        ],
    )
    assert found.steps[0].options["n"] == 2
    assert found.steps[1].options["pairs"] == ["mlp"]
    assert found.steps[1].calibration is not None
    assert found.steps[1].calibration.windows == 8
    assert "generation" not in found.evaluate.built
    assert found.evaluate.built["speed"].prompt == 5
    assert found.title == "a = b"
    assert load_recipe(file, ["steps.0={method: modegpt}"]).steps[0].method == "modegpt"


@pytest.mark.parametrize(
    ("given", "info"),
    [
        ("steps.0.n", ("'steps.0.n'", "KEY=VALUE", "steps.0.n=6")),
        ("=3", ("KEY=VALUE",)),
        ("steps..n=3", ("KEY=VALUE",)),
        ("steps.2.n=3", ("steps has the entries 0 to 1", "'2'")),
        ("steps.-1.n=3", ("steps has the entries 0 to 1", "'-1'")),
        ("steps.first.n=3", ("steps has the entries 0 to 1", "'first'")),
        ("steps.7={}", ("steps has the entries 0 to 1", "'7'")),
        ("model.name=3", ("model is 'm'", "nothing below it")),
        ("title=[", ("'[' is not a YAML value", "quotes")),
        ("titel=x", ("--set 'titel=x', titel", "unknown key", "did you mean 'title'?")),
        ("seed=x", ("--set 'seed=x', seed", "whole number", "'x'")),
        ("steps.0.n=x", ("--set 'steps.0.n=x', steps.0", "whole number", "'x'")),
        ("steps.0=5", ("--set 'steps.0=5', steps.0", "must be a mapping")),
        ("steps.1.sparsty=0.3", ("steps.1", "'sparsty'", "did you mean 'sparsity'?")),
    ],
)
def test_bad_set_values_are_explained(given: str, info: tuple[str, ...], tmp_path: Path) -> None:
    message = refusal(write(tmp_path, BASE), given)
    for part in info:
        assert part in message
