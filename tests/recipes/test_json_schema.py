"""The JSON Schema takes the recipes that load, and marks those with keys that do not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from modwright.core.errors import InvalidInputError
from modwright.recipes.load import parse_recipe, recipe_schema, resolved
from modwright.recipes.study import parse_study, study_schema
from modwright.recipes.training_schema import parse_training, training_schema
from modwright.surgery import method_names, method_type

from .json_checks import faults
from .mistakes import MISTAKES
from .recipe_values import RECIPES

SCHEMA = recipe_schema()
# What only the methods themselves, or YAML, can see.
UNSEEN = {"option out of range", "key given twice", "key given twice deep inside"}
UNSEEN |= {"recipe that holds itself", "extends itself", "key that is no text", "impossible date"}
UNSEEN |= {"open bracket", "tab", "a metric under two names"}


def found(tree: Any) -> list[str]:
    return list(faults(tree, SCHEMA, SCHEMA))


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for inner in schema.values():
            yield from parts(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from parts(inner)


def test_it_is_json_and_says_which_dialect() -> None:
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_reference_leads_somewhere() -> None:
    references = {part["$ref"] for part in parts(SCHEMA) if isinstance(part.get("$ref"), str)}
    assert references
    assert {name.removeprefix("#/$defs/") for name in references} <= set(SCHEMA["$defs"])


def test_every_option_of_every_method_is_there_with_its_sentence() -> None:
    for name in method_names():
        for form in SCHEMA["$defs"][name]["anyOf"]:
            options = form["properties"].get("options", form)["properties"]
            for field in dataclasses.fields(method_type(name)):
                assert options[field.name]["description"]
                needed = field.default is dataclasses.MISSING
                assert ("default" in options[field.name]) != needed
                assert (field.name in form["properties"].get("options", form)["required"]) == needed


def test_the_examples_fit() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    assert examples
    for file in examples:
        tree = yaml.safe_load(file.read_text())
        schema = SCHEMA if "steps" in tree else training_schema()
        assert list(faults(tree, schema, schema)) == [], file.name


STEPS: list[tuple[Any, bool]] = [
    ({"train": {"data": {"text": "lee"}, "max_steps": 5, "learns": {"lora": {"r": 2}}}}, True),
    ({"train": {"data": "lee", "max_step": 5}}, False),
    ({"train": {}}, False),
    ({"heal": {"tokens": 64, "learning_rate": 1e-4, "data": [{"text": "lee"}]}}, True),
    ({"heal": {"token": 64}}, False),
    ({"export": "standalone"}, True),
    ({"export": {"gguf": {"type": "q8_0"}}}, True),
    ({"export": {"guf": {}}}, False),
    ({"trian": {}}, False),
]


MODELS: list[tuple[Any, bool]] = [
    ({"checkpoint": "m", "num_classes": 3}, True),
    ({"checkpoint": "m"}, True),
    ({"checkpoint": "m", "num_classes": 0}, False),
    ({"checkpoint": "m", "classes": 3}, False),
]


@pytest.mark.parametrize(("model", "fits"), MODELS)
def test_models_with_other_classes_fit_where_they_load(model: Any, fits: bool) -> None:
    tree = {"model": model, "steps": [STEPS[0][0]]}
    assert (found(tree) == []) is fits
    if fits:
        assert found(resolved(parse_recipe(tree))) == []
    else:
        with pytest.raises(InvalidInputError):
            parse_recipe(tree)


@pytest.mark.parametrize(("step", "fits"), STEPS)
def test_steps_of_other_kinds_fit_where_they_load(step: Any, fits: bool) -> None:
    tree = {"model": "m", "steps": [step]}
    assert (found(tree) == []) is fits
    if fits:
        assert found(resolved(parse_recipe(tree))) == []
    else:
        with pytest.raises(InvalidInputError):
            parse_recipe(tree)


@pytest.mark.parametrize(
    "change",
    [
        {"modle": {}},
        {"data": {"image": "digits"}},
        {"data": {"images": "digits", "sid": 3}},
        {"data": {"images": 3}},
        {"objective": "distillation"},
        {"objective": {"distillation": {"weight": 1.0}}},
        {"objective": {"cross_entropy": {"mixu": 1.0}}},
        {"settings": {"epoch": 3}},
        {"model": {"name": "poolformer"}},
        {"model": {"checkpoint": "a", "more": 1}},
        {"checkpoint_every": 0},
    ],
)
def test_the_schema_of_trainings_marks_what_is_refused(change: dict[str, Any]) -> None:
    schema = training_schema()
    good = {"model": {"name": "poolformer_s12"}, "data": {"images": "digits"}}
    assert not list(faults(good, schema, schema))
    assert list(faults({**good, **change}, schema, schema))
    with pytest.raises(InvalidInputError):
        parse_training({**good, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"model": "preset:tiny-llama", "steps": [{"method": "llm_drop", "m": 1}]}},
        {"arms": [1]},
        {"seeds": []},
        {"workers": 0},
        {"keep": {"column": "perplexity"}},
        {"arm": {}},
    ],
)
def test_the_schema_of_studies_marks_what_is_refused(change: dict[str, Any]) -> None:
    schema = study_schema()
    recipe = {"model": "preset:tiny-llama", "steps": [{"method": "llm_drop", "n": 1}]}
    good = {"recipe": recipe, "arms": {"steps.0.n": [1, 2]}, "seeds": [0, 1]}
    for fits in (good, {**good, "recipe": "cut.yaml"}, {"extends": "other.yaml"}):
        assert not list(faults(fits, schema, schema))
    assert list(faults({**good, **change}, schema, schema))
    parse_study(good)
    with pytest.raises(InvalidInputError):
        parse_study({**good, **change})


@settings(derandomize=True, deadline=None)
@given(RECIPES)
def test_what_loads_fits(tree: dict[str, Any]) -> None:
    assert found(tree) == []
    assert found(resolved(parse_recipe(tree))) == []


def test_a_file_that_extends_another_may_leave_keys_out() -> None:
    assert found({"extends": "base.yaml", "seed": 3}) == []
    assert found({"seed": 3}) != []


@pytest.mark.parametrize("name", sorted(set(MISTAKES) - UNSEEN))
def test_mistakes_are_marked(name: str) -> None:
    assert found(yaml.safe_load(MISTAKES[name][0])) != []
