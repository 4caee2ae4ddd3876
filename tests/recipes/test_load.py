"""A recipe file is taken as it is meant, or refused with its place, its value and what is legal."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modwright.errors import CheckpointError, ModwrightError, Refused
from modwright.recipes import load_recipe
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.schema import Recipe, Step

STEP = "steps:\n  - method: llm_drop\n    n: 1\n"


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
    assert found.evaluate.perplexity is not None
    assert found.calibration.data == "lee-background"


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
    assert found.evaluate.speed is None
    assert found.evaluate.perplexity is not None


def test_anchors_and_merged_keys_are_plain_yaml(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
        model: m
        calibration: &text {data: words.txt, windows: 3}
        steps:
          - method: llm_drop
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
    assert [step.method for step in load_recipe(example).steps] == ["llm_drop", "modegpt"]


# What is refused: the file's text, and what the message must say

MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": (
        "model: m\nmodle: x\n" + STEP,
        (
            "r.yaml line 2, modle",
            "unknown key",
            "legal keys: model, output",
            "did you mean 'model'?",
        ),
    ),
    "misspelt key before the missing one": (
        "model: m\nstep:\n  - {method: llm_drop}\n",
        ("r.yaml line 2, step", "did you mean 'steps'?"),
    ),
    "missing key": (
        STEP,
        ("r.yaml line 1, model", "is missing", "preset:NAME"),
    ),
    "unknown key two levels down": (
        "model: m\nevaluate:\n  perplexity:\n    widows: 4\n" + STEP,
        ("r.yaml line 4, evaluate.perplexity.widows", "stride", "did you mean 'windows'?"),
    ),
    "unknown key in a flow mapping": (
        "model: m\nevaluate: {speed: {promt: 4}}\n" + STEP,
        ("r.yaml line 2, evaluate.speed.promt", "new_tokens", "did you mean 'prompt'?"),
    ),
    "unknown key in a step's calibration": (
        "model: m\n" + STEP + "    calibration: {lenght: 3}\n",
        ("r.yaml line 5, steps.0.calibration.lenght", "did you mean 'length'?"),
    ),
    "unknown key beside options": (
        "model: m\nsteps:\n  - method: llm_drop\n    options: {n: 1}\n    m: 2\n",
        ("r.yaml line 5, steps.0.m", "unknown key", "method, calibration, options"),
    ),
    "unknown method": (
        "model: m\nsteps:\n  - method: modegpt\n  - method: llmdrop\n",
        ("r.yaml line 4, steps.1", "'llmdrop'", "llm_drop, modegpt", "did you mean 'llm_drop'?"),
    ),
    "no method": (
        "model: m\nsteps:\n  - n: 1\n",
        ("r.yaml line 3, steps.0.method", "is missing", "llm_drop, modegpt"),
    ),
    "null for a method": (
        "model: m\nsteps:\n  - method:\n    n: 1\n",
        ("r.yaml line 3, steps.0.method", "must be text, not null"),
    ),
    "unknown option": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: 1\n    targt: mlp\n",
        ("r.yaml line 5, steps.0", "'targt'", "n, target, mode", "did you mean 'target'?"),
    ),
    "illegal option": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: 1\n    target: attn\n",
        ("r.yaml line 5, steps.0", "'attention', 'mlp', 'block' or 'joint'", "'attn'"),
    ),
    "option of the wrong type": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: four\n",
        ("r.yaml line 4, steps.0", "n:", "integer", "'four'"),
    ),
    "option out of range": (
        "model: m\nsteps:\n  - method: modegpt\n    pairs: [mlp]\n    sparsity: 1.5\n",
        ("r.yaml line 5, steps.0", "sparsity 1.5", "[0, 1)"),
    ),
    "illegal entry of an option's list": (
        "model: m\nsteps:\n  - method: modegpt\n    pairs: [mlp, atention]\n",
        ("r.yaml line 4, steps.0", "'mlp', 'query_key' or 'value_output'", "'atention'"),
    ),
    "method without a mapping": (
        "model: m\nsteps:\n  - llm_drop\n",
        ("r.yaml line 3, steps.0", "must be a mapping", "method", "'llm_drop'"),
    ),
    "steps without dashes": (
        "model: m\nsteps:\n  method: llm_drop\n",
        ("r.yaml line 2, steps", "must be a list", "'- '"),
    ),
    "no steps": (
        "model: m\nsteps: []\n",
        ("r.yaml line 2, steps", "at least one entry", "[]"),
    ),
    "number for text": (
        "model: 7\n" + STEP,
        ("r.yaml line 1, model", "must be text, not 7"),
    ),
    "text for a number": (
        "model: m\nseed: 1e3\n" + STEP,
        ("r.yaml line 2, seed", "must be a whole number, not '1e3'"),
    ),
    "truth for a number": (
        "model: m\nthreads: true\n" + STEP,
        ("r.yaml line 2, threads", "must be a whole number, not true"),
    ),
    "text for truth": (
        "model: m\ncalibration: {bos: maybe}\n" + STEP,
        ("r.yaml line 2, calibration.bos", "must be true or false, not 'maybe'"),
    ),
    "number out of range": (
        "model: m\ncalibration:\n  windows: 0\n" + STEP,
        ("r.yaml line 3, calibration.windows", "must be 1 or more, not 0"),
    ),
    "text for a mapping": (
        "model: m\nevaluate: {perplexity: none}\n" + STEP,
        (
            "r.yaml line 2, evaluate.perplexity",
            "mapping with the keys data",
            "null to leave it out",
        ),
    ),
    "unknown dtype": (
        "model: m\ndtype: fp16\n" + STEP,
        ("r.yaml line 2, dtype", "'bfloat16'", "not 'fp16'", "did you mean 'float16'?"),
    ),
    "size of a shard": (
        "model: m\nmax_shard_size: huge\n" + STEP,
        ("r.yaml line 2, max_shard_size", "200MB", "'huge'"),
    ),
    "key given twice": (
        "model: m\nseed: 1\nmodel: n\n" + STEP,
        ("r.yaml line 3, model", "r.yaml line 1", "keep one"),
    ),
    "key given twice deep inside": (
        "model: m\n" + STEP + "    n: 2\n",
        ("r.yaml line 5, steps.0.n", "r.yaml line 4"),
    ),
    "key that is no text": (
        "model: m\n3: x\n" + STEP,
        ("r.yaml line 2, 3", "a key must be text, not 3"),
    ),
    "open bracket": (
        "model: m\nsteps: [\n",
        ("r.yaml line 3", "not valid YAML"),
    ),
    "tab": (
        "model: m\nsteps:\n\t- method: llm_drop\n",
        ("r.yaml line 3", "not valid YAML", "not with tabs"),
    ),
    "impossible date": (
        "model: m\ntitle: 2024-13-45\n" + STEP,
        ("r.yaml", "not valid YAML", "month"),
    ),
    "list instead of a recipe": (
        "- model: m\n",
        ("r.yaml is a list", "keys model and steps"),
    ),
    "empty file": (
        "# nothing yet\n",
        ("r.yaml is empty", "keys model and steps"),
    ),
    "recipe that holds itself": (
        "model: m\nsteps:\n  - {method: llm_drop, n: &a [*a]}\n",
        ("r.yaml line 3, steps.0", "n:"),
    ),
    "extends something odd": (
        "extends: [a.yaml]\nmodel: m\n",
        ("r.yaml line 1, extends", "one recipe file"),
    ),
    "extends itself": (
        "model: m\nextends: r.yaml\n",
        ("r.yaml", "circle"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained_in_one_line(name: str, tmp_path: Path) -> None:
    text, told = MISTAKES[name]
    message = refusal(write(tmp_path, text))
    for part in told:
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
    assert found.evaluate.perplexity is not None
    assert (found.evaluate.perplexity.windows, found.evaluate.perplexity.stride) == (2, 5)
    assert found.evaluate.speed is None
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
    assert found.evaluate.generate is None
    assert found.evaluate.speed is not None
    assert found.evaluate.speed.prompt == 5
    assert found.title == "a = b"
    assert load_recipe(file, ["steps.0={method: modegpt}"]).steps[0].method == "modegpt"


@pytest.mark.parametrize(
    ("given", "told"),
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
        ("steps.0.n=x", ("--set 'steps.0.n=x', steps.0", "integer", "'x'")),
        ("steps.0=5", ("--set 'steps.0=5', steps.0", "must be a mapping")),
        ("steps.1.sparsty=0.3", ("steps.1", "'sparsty'", "did you mean 'sparsity'?")),
    ],
)
def test_bad_set_values_are_explained(given: str, told: tuple[str, ...], tmp_path: Path) -> None:
    message = refusal(write(tmp_path, BASE), given)
    for part in told:
        assert part in message


# Resolving

SIZES = st.integers(1, 500)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "data": st.sampled_from(["lee", "words.txt", "datasets:x#y"]),
        "windows": SIZES,
        "length": st.integers(2, 999),
        "seed": st.none() | st.integers(0, 9),
        "bos": st.booleans(),
    },
)
LLM_DROP = st.fixed_dictionaries(
    {"method": st.just("llm_drop")},
    optional={
        "n": st.integers(0, 40),
        "target": st.sampled_from(["attention", "mlp", "block", "joint"]),
        "mode": st.sampled_from(["one_shot", "iterative"]),
        "drop_norm": st.booleans(),
        "lists": st.none() | st.just("config.json"),
        "calibration": DATA,
    },
)
MODEGPT = st.fixed_dictionaries(
    {"method": st.just("modegpt")},
    optional={
        "sparsity": st.floats(0, 0.7),
        "pairs": st.lists(
            st.sampled_from(["mlp", "query_key", "value_output"]), min_size=1, unique=True
        ),
        "allocation": st.sampled_from(["global", "uniform"]),
        "round_to": st.integers(1, 64),
        "calibration": DATA,
    },
)
WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1)
RECIPES = st.fixed_dictionaries(
    {"model": WORDS, "steps": st.lists(LLM_DROP | MODEGPT, min_size=1, max_size=3)},
    optional={
        "title": WORDS,
        "dtype": st.none() | st.sampled_from(["float32", "bfloat16"]),
        "seed": st.integers(-5, 5),
        "threads": st.none() | SIZES,
        "max_shard_size": st.sampled_from(["5GB", "200MB", "1.5 GB", "900kB"]),
        "calibration": DATA,
        "evaluate": st.fixed_dictionaries(
            {},
            optional={
                "perplexity": st.none() | st.fixed_dictionaries({}, optional={"windows": SIZES}),
                "speed": st.none(),
                "generate": st.fixed_dictionaries({}, optional={"chat": st.none() | st.booleans()}),
            },
        ),
    },
)


@settings(derandomize=True, deadline=None)
@given(RECIPES)
def test_a_resolved_recipe_resolves_to_itself(tree: dict[str, Any]) -> None:
    whole = resolved(parse_recipe(tree))
    assert resolved(parse_recipe(whole)) == whole
    stored = yaml.safe_load(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
    assert stored == whole
    assert resolved(parse_recipe(stored)) == whole


def test_a_resolved_recipe_names_every_default(tmp_path: Path) -> None:
    whole = resolved(load_recipe(write(tmp_path, "model: m\n" + STEP)))
    assert set(whole) == set(Recipe.model_fields)
    assert whole["steps"][0]["mode"] == "one_shot"
    assert whole["steps"][0]["calibration"] == whole["calibration"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SOMETHING = st.dictionaries(
    st.sampled_from(["model", "steps", "evaluate", "calibration", "dtype", "x"]),
    JUNK
    | st.lists(st.dictionaries(st.sampled_from(["method", "n", "calibration", "options"]), JUNK))
    | st.lists(
        st.fixed_dictionaries({"method": st.just("modegpt"), "pairs": JUNK, "epsilon": JUNK})
    ),
)


@settings(derandomize=True, deadline=None)
@given(JUNK | SOMETHING)
def test_whatever_is_given_is_taken_or_refused_in_one_line(tree: Any) -> None:
    try:
        parse_recipe(tree)
    except Refused as error:
        assert len(str(error).splitlines()) == 1
