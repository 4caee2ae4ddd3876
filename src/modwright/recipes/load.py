"""Reads a recipe file. What is wrong is said with its line, its value and what would be valid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.recipes.reading import Location, read_changed
from modwright.recipes.schema import Recipe
from modwright.recipes.validation_errors import position_of, validated
from modwright.surgery import plain_options

__all__ = ["load_recipe", "parse_recipe", "resolved"]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file, fully checked: methods and their options too.

    Args:
        path: the file. A key ``extends`` names another one, relative to it, that this one changes.
        overrides: ``steps.0.n=6`` and the like, applied last.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: names file, line, value and the valid values.
    """
    return parse_recipe(*read_changed(path, overrides))


def parse_recipe(
    tree: Any, positions: Mapping[Location, str] | None = None, name: str = "recipe"
) -> Recipe:
    """A recipe from plain values.

    Args:
        tree: what the YAML file would hold.
        positions: where each value was written, for messages.
        name: what messages call the recipe where no place is known.

    Raises:
        InvalidInputError: names the place, the value and what is valid.

    Example:
        >>> steps = [{"method": "llm_drop", "n": 1}]
        >>> parse_recipe({"model": "smollm2-135m", "steps": steps}).steps[0].options
        {'n': 1}
    """
    where = positions or {}
    recipe = validated(Recipe, tree, where, name, "model and steps")
    for index, step in enumerate(recipe.steps):
        try:
            _ = step.built
        except ModwrightError as error:
            at: Location = ("steps", index, _option_at_fault(str(error), step.options))
            raise InvalidInputError(
                f"{position_of(at, where, name)}, steps.{index}: {error}"
            ) from None
    return recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out; running it again gives the same result."""
    tree = recipe.model_dump(mode="json")
    for step, stored in zip(recipe.steps, tree["steps"]):
        stored.clear()
        stored.update({"method": step.method, **plain_options(step.built)})
        stored["calibration"] = (step.calibration or recipe.calibration).model_dump(mode="json")
    return tree


def _option_at_fault(message: str, options: Mapping[str, Any]) -> str:
    """The option that a message speaks of first; ``method`` where it speaks of none."""
    found = {key: re.search(rf"\b{re.escape(str(key))}\b", message) for key in options}
    first = {key: match.start() for key, match in found.items() if match is not None}
    return min(first, key=first.__getitem__, default="method")
