"""Reads a recipe file. What is wrong is said with its line, its value and what would be legal."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from modwright.errors import ModwrightError, Refused
from modwright.recipes.reading import Location, override, read_tree
from modwright.recipes.schema import Recipe
from modwright.surgery import make_method, method_names

__all__ = ["load_recipe", "parse_recipe", "resolved"]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file, fully checked: methods and their options too.

    Args:
        path: the file. A key ``extends`` names another one, relative to it, that this one changes.
        overrides: ``steps.0.n=6`` and the like, applied last.

    Raises:
        CheckpointError: the file cannot be read.
        Refused: names file, line, value and the legal values.
    """
    file = Path(path)
    tree, places = read_tree(file)
    for text in overrides:
        override(tree, places, text)
    return parse_recipe(tree, places, file.name)


def parse_recipe(
    tree: Any, places: Mapping[Location, str] | None = None, name: str = "recipe"
) -> Recipe:
    """A recipe from plain values.

    Args:
        tree: what the YAML file would hold.
        places: where each value was written, for messages.
        name: what messages call the recipe where no place is known.

    Raises:
        Refused: names the place, the value and what is legal.

    Example:
        >>> steps = [{"method": "llm_drop", "n": 1}]
        >>> parse_recipe({"model": "smollm2-135m", "steps": steps}).steps[0].options
        {'n': 1}
    """
    where = places or {}
    if not isinstance(tree, dict):
        given = "empty" if tree is None else f"a {type(tree).__name__}"
        raise Refused(f"{name} is {given}; a recipe is a mapping with the keys model and steps")
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise Refused(_explain(error, where, name)) from None
    for index, step in enumerate(recipe.steps):
        try:
            make_method(step.method, step.options)
        except ModwrightError as error:
            at: Location = ("steps", index, _option_at_fault(str(error), step.options))
            raise Refused(f"{_place(at, where, name)}, steps.{index}: {error}") from None
    return recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out; running it again gives the same result."""
    tree = recipe.model_dump(mode="json")
    for step, stored in zip(recipe.steps, tree["steps"]):
        method = make_method(step.method, step.options)
        options = {name: _plain(value) for name, value in vars(method).items()}
        stored.clear()
        stored.update({"method": step.method, **options})
        stored["calibration"] = (step.calibration or recipe.calibration).model_dump(mode="json")
    return tree


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _option_at_fault(message: str, options: Mapping[str, Any]) -> str:
    """The option that a message speaks of first; ``method`` where it speaks of none."""
    found = {key: re.search(rf"\b{re.escape(str(key))}\b", message) for key in options}
    first = {key: match.start() for key, match in found.items() if match is not None}
    return min(first, key=first.__getitem__, default="method")


def _place(at: Location, places: Mapping[Location, str], name: str) -> str:
    """Where a value was written, or else the nearest mapping or list around it."""
    return next((places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in places), name)


def _explain(error: ValidationError, places: Mapping[Location, str], name: str) -> str:
    # A misspelt key is the likely cause of the one that is missing, so it goes first.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    at: Location = tuple(piece for piece in first["loc"] if piece != "[key]")
    if first["type"] == "invalid_key":  # a number as a key; places know keys as they are written
        at = (*at[:-1], str(at[-1]))
    problem = _PROBLEMS.get(first["type"], _other)(first, at)
    if first["type"] not in ("missing", "extra_forbidden"):
        problem += f", not {_shown(first['input'])}{_near(first)}"
    return f"{_place(at, places, name)}, {'.'.join(map(_word, at))}: {problem}"


def _word(piece: str | int) -> str:
    """A piece of a path, on one line."""
    return str(piece) if str(piece).isprintable() else repr(piece)


def _unknown_key(item: Mapping[str, Any], at: Location) -> str:
    model, _ = _at(at[:-1])
    names = model.legal_keys()
    near = difflib.get_close_matches(str(at[-1]), names, n=1)
    told = f"unknown key; legal keys: {', '.join(names)}"
    return told + (f" (did you mean {near[0]!r}?)" if near else "")


def _missing(item: Mapping[str, Any], at: Location) -> str:
    if at[-1] == "method":
        return f"is missing; legal values: {', '.join(method_names())}"
    model, _ = _at(at[:-1])
    return f"is missing: {model.model_fields[str(at[-1])].description}"


def _mapping(item: Mapping[str, Any], at: Location) -> str:
    model, optional = _at(at)
    told = f"must be a mapping with the keys {', '.join(model.legal_keys())}"
    return told + (", or null to leave it out" if optional else "")


def _expected(item: Mapping[str, Any], at: Location) -> str:
    return f"must be {item['ctx']['expected']}"


def _at_least(item: Mapping[str, Any], at: Location) -> str:
    return f"must be {item['ctx']['ge']} or more"


def _pattern(item: Mapping[str, Any], at: Location) -> str:
    model, _ = _at(at[:-1])
    return f"must be the {model.model_fields[str(at[-1])].description}"


def _other(item: Mapping[str, Any], at: Location) -> str:
    return str(item["msg"][0].lower() + item["msg"][1:])


_PROBLEMS = {
    "bool_type": lambda item, at: "must be true or false",
    "dict_type": lambda item, at: "must be a mapping of names to values",
    "extra_forbidden": _unknown_key,
    "greater_than_equal": _at_least,
    "int_type": lambda item, at: "must be a whole number",
    "invalid_key": lambda item, at: "a key must be text",
    "list_type": lambda item, at: "must be a list, whose entries begin with '- '",
    "literal_error": _expected,
    "missing": _missing,
    "model_type": _mapping,
    "string_pattern_mismatch": _pattern,
    "string_type": lambda item, at: "must be text",
    "too_short": lambda item, at: "must have at least one entry",
}


def _near(item: Mapping[str, Any]) -> str:
    """The nearest legal value where there is a list of them."""
    legal = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(item["input"]), legal, n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _shown(value: Any) -> str:
    """A value as the recipe has it, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(at: Location) -> tuple[Any, bool]:
    """What a place in the recipe holds: the model of its mapping, and whether null is legal."""
    model: Any = Recipe
    optional = False
    for piece in at:
        if isinstance(piece, int):
            continue
        annotation = model.model_fields[piece].annotation
        optional = type(None) in getattr(annotation, "__args__", ())
        model = next(iter(_models_in(annotation)))
    return model, optional


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]
