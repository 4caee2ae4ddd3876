"""Recipe files: reading one, with what is wrong said by its line; and their JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.core.plugins import add_plugin, load_plugins
from modwright.data import resolve_data
from modwright.data.registry import plain
from modwright.recipes.composed import check_composed, composed_schema
from modwright.recipes.evaluating import check_evaluate, evaluate_schema
from modwright.recipes.options import option_help, summary, validated
from modwright.recipes.reading import Lines, Positions, read_changed
from modwright.recipes.schema import EXPORT, METHOD, Data, Recipe
from modwright.recipes.steps import STEPS
from modwright.surgery import method_names, method_type, plain_options

__all__ = ["load_named", "load_recipe", "of_file", "parse_recipe", "recipe_schema", "resolved"]


def load_recipe(
    path: str | Path, overrides: Iterable[str] = (), plugins: Sequence[str] = ()
) -> Recipe:
    """A recipe from a YAML file, fully checked: methods and their options too.

    A key ``extends`` names another file, relative to this one, that this one changes;
    ``overrides``, such as ``steps.0.n=6``, are applied last. Its plugins are imported, and those
    that are given beside.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: names file, line, value and the valid values.
    """
    return parse_recipe(*read_changed(path, overrides), plugins=plugins)


def load_named(named: Sequence[str], lines: Lines, more: Sequence[str] = ()) -> list[str]:
    """Imports the plugins that a recipe names, and ``more``; how they are named anywhere.

    Raises:
        InvalidInputError: one cannot be imported; says where the recipe names it.
    """
    load_plugins()
    found: dict[str, None] = {}
    for index, plugin in enumerate((*named, *more)):
        try:
            found[add_plugin(plugin)] = None
            load_plugins()
        except ModwrightError as error:
            where = f"{lines.of(('plugins', index))}, plugins.{index}: "
            raise InvalidInputError(f"{where if index < len(named) else ''}{error}") from error
    return list(found)


def parse_recipe(
    tree: Any,
    positions: Positions | None = None,
    name: str = "recipe",
    plugins: Sequence[str] = (),
) -> Recipe:
    """A recipe from plain values; messages say where each was written, or the recipe's ``name``.

    Raises:
        InvalidInputError: names the place, the value and what is valid.

    Example:
        >>> steps = [{"method": "llm_drop", "n": 1}]
        >>> parse_recipe({"model": "smollm2-135m", "steps": steps}).steps[0].options
        {'n': 1}
    """
    lines = Lines(positions or {}, name)
    recipe = validated(Recipe, tree, lines, keys="model and steps")
    recipe = recipe.model_copy(update={"plugins": load_named(recipe.plugins, lines, plugins)})
    if isinstance(recipe.model, dict):
        check_composed(recipe.model, lines)
    check_evaluate(recipe.evaluate, lines)
    _check_data(recipe.calibration, ("calibration",), lines)
    for index, step in enumerate(recipe.steps):
        if step.calibration is not None:
            _check_data(step.calibration, ("steps", index, "calibration"), lines)
        try:
            _ = step.built
        except ModwrightError as error:
            # The option that the message speaks of first.
            said = {
                key: re.search(rf"\b{re.escape(str(key))}\b", str(error)) for key in step.options
            }
            found = {key: match.start() for key, match in said.items() if match}
            option = min(found, key=found.__getitem__, default=step.kind)
            place = lines.of(("steps", index, option))
            raise InvalidInputError(f"{place}, steps.{index}: {error}") from None
        if step.kind != EXPORT and index and recipe.steps[index - 1].kind == EXPORT:
            place = lines.of(("steps", index - 1))
            raise InvalidInputError(f"{place}, steps.{index - 1}: export stands behind all others")
    return recipe


def _check_data(asked: Data, at: tuple[str | int, ...], lines: Lines) -> None:
    """Refuses what names no dataset; a text that is a name alone is looked for when it is read."""
    if isinstance(asked.data, str):
        return
    try:
        resolve_data(asked.data)
    except InvalidInputError as error:
        where = (*at, "data")
        path = ".".join(map(str, where))
        raise InvalidInputError(f"{lines.of(where)}, {path}: {error}") from None


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out; running it again gives the same result."""
    tree = recipe.model_dump(mode="json")
    tree["evaluate"] = recipe.evaluate.resolved()
    tree["steps"] = [
        {
            "method": step.method,
            **plain_options(step.built),
            "calibration": (step.calibration or recipe.calibration).model_dump(mode="json"),
        }
        if step.kind == METHOD
        else {step.kind: plain(step.built.resolved())}
        for step in recipe.steps
    ]
    return tree


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file, with the options of every method beside ``method``.

    Example:
        >>> recipe_schema()["$defs"]["modegpt"]["anyOf"][0]["properties"]["sparsity"]["default"]
        0.2
    """
    schema = Recipe.model_json_schema()
    schema["properties"]["model"] |= composed_schema()
    schema["properties"]["model"].pop("type", None)
    definitions = schema["$defs"]
    calibration = definitions["Step"]["properties"]["calibration"]
    names = method_names()
    for name in names:
        definitions[name] = _step(name, calibration, definitions)
    definitions["Evaluate"] = evaluate_schema(definitions)
    kinds = [_closed({kind: STEPS[kind].schema()}, [kind]) for kind in STEPS.names()]
    definitions["Step"] = {
        "title": "Step",
        "type": "object",
        "properties": {"method": {"enum": names}},
        "oneOf": [*({"$ref": f"#/$defs/{name}"} for name in names), *kinds],
    }
    return of_file(schema)


def of_file(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a file, which may leave out what stands in another that it extends."""
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another recipe file, relative to this one, that this one changes",
    }
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _step(name: str, calibration: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One step of a method: its options stand beside ``method``, or together in ``options``."""
    method = method_type(name)
    options = TypeAdapter(method).json_schema(ref_template="#/$defs/{model}")
    definitions.update(options.pop("$defs", {}))
    properties = options.get("properties", {})
    for key, words in option_help(method).items():
        if key in properties:
            properties[key]["description"] = words
    required = options.get("required", [])
    frame = {"method": {"const": name}, "calibration": calibration}
    beside = _closed({**frame, **properties}, ["method", *required])
    together = {**frame, "options": _closed(properties, required)}
    inside = _closed(together, ["method", "options"])
    return {"title": name, "description": summary(method), "anyOf": [beside, inside]}


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "required": required}
    return {**found, "additionalProperties": False}
