"""A resolved recipe names every default, and is the recipe that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings

from modwright.core.errors import InvalidInputError
from modwright.recipes import load_recipe
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.schema import Recipe

from .mistakes import STEP
from .recipe_values import JUNK, RECIPES, SOMETHING


@settings(derandomize=True, deadline=None)
@given(RECIPES)
def test_a_resolved_recipe_resolves_to_itself(tree: dict[str, Any]) -> None:
    whole = resolved(parse_recipe(tree))
    assert resolved(parse_recipe(whole)) == whole
    stored = yaml.safe_load(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
    assert stored == whole
    assert resolved(parse_recipe(stored)) == whole


def test_a_resolved_recipe_names_every_default(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: m\n" + STEP)
    whole = resolved(load_recipe(tmp_path / "r.yaml"))
    assert set(whole) == set(Recipe.model_fields)
    assert whole["steps"][0]["mode"] == "one_shot"
    assert whole["steps"][0]["calibration"] == whole["calibration"]


@settings(derandomize=True, deadline=None)
@given(JUNK | SOMETHING)
def test_whatever_is_given_is_taken_or_refused_in_one_line(tree: Any) -> None:
    try:
        parse_recipe(tree)
    except InvalidInputError as error:
        assert len(str(error).splitlines()) == 1
