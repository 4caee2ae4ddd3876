"""The JSON Schema of recipe files: editors complete keys with it and mark what is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from modwright.recipes.options import option_help, summary
from modwright.recipes.schema import Recipe
from modwright.surgery import method_names, method_type

__all__ = ["recipe_schema"]


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file, with the options of every method beside ``method``.

    Example:
        >>> recipe_schema()["$defs"]["modegpt"]["anyOf"][0]["properties"]["sparsity"]["default"]
        0.2
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    calibration = definitions["Step"]["properties"]["calibration"]
    names = method_names()
    for name in names:
        definitions[name] = _step(name, calibration, definitions)
    definitions["Step"] = {
        "title": "Step",
        "type": "object",
        "properties": {"method": {"enum": names}},
        "required": ["method"],
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in names],
    }
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another recipe file, relative to this one, that this one changes",
    }
    # A file that extends another one may leave out what stands there.
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _step(name: str, calibration: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One step of a method: its options stand beside ``method``, or together in ``options``."""
    method = method_type(name)
    options = TypeAdapter(method).json_schema(ref_template="#/$defs/{model}")
    definitions.update(options.pop("$defs", {}))
    info = option_help(method)
    properties = {
        key: {**value, **({"description": info[key]} if key in info else {})}
        for key, value in options.get("properties", {}).items()
    }
    together = {
        "type": "object",
        "properties": properties,
        "required": options.get("required", []),
        "additionalProperties": False,
    }
    frame = {"method": {"const": name}, "calibration": calibration}
    beside = {**together, "properties": {**frame, **properties}}
    beside["required"] = ["method", *together["required"]]
    inside = {
        "type": "object",
        "properties": {**frame, "options": together},
        "required": ["method", "options"],
        "additionalProperties": False,
    }
    return {"title": name, "description": summary(method), "anyOf": [beside, inside]}
