"""The key ``data`` of a recipe as JSON Schema, from the signatures of what is registered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, get_type_hints

from modwright.data.registry import KINDS, DataKind, datasets_of, parameters_of, plain

__all__ = ["data_schema"]

Help = Callable[[Any], Mapping[str, str]]


def data_schema(help_of: Help | None = None) -> dict[str, Any]:
    """What the key ``data`` may be: a name, a mapping of a kind, or a list of these.

    Args:
        help_of: gives for a function what its options mean, such as
            :func:`modwright.recipes.options.option_help`.

    Example:
        >>> entries = data_schema()["anyOf"][1]["oneOf"]
        >>> digits = next(entry for entry in entries if entry["title"] == "images: digits")
        >>> digits["properties"]["image_size"]["default"]
        32
    """
    help_of = help_of or (lambda function: {})
    entries = []
    for name in KINDS.names():
        kind = KINDS[name]
        for known, info in sorted(datasets_of(name).all().items()):
            named = {"const": known, "description": info.source}
            entries.append(_entry(kind, info.make, named, f"{name}: {known}", help_of))
        if kind.path is not None:
            others = "|".join(map(re.escape, datasets_of(name).names()))  # a name is no path
            named = {"type": "string", "pattern": f"^(?!(?:{others})$)", "description": kind.paths}
            entries.append(_entry(kind, kind.path, named, f"{name}: a path", help_of))
    mapping = {"oneOf": entries}
    return {"anyOf": [{"type": "string"}, mapping, {"type": "array", "items": mapping}]}


def _entry(
    kind: DataKind, make: Callable[..., Any], named: Any, title: str, help_of: Help
) -> dict[str, Any]:
    properties: dict[str, Any] = {kind.name: named, "weight": {"type": "number"}}
    needed = [kind.name]
    is_path = make is kind.path
    for function, options in (
        (kind.finish, parameters_of(kind.finish)),
        (make, parameters_of(make, is_path=is_path)),
    ):
        hints, told = get_type_hints(function), help_of(function)
        for option, default in options.items():
            properties[option] = {**_schema(hints.get(option, Any))}
            if option in told:
                properties[option]["description"] = told[option]
            if default is Parameter.empty:
                needed.append(option)
            else:
                properties[option]["default"] = plain(default)
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def _schema(hint: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    found: dict[str, Any] = TypeAdapter(hint).json_schema()
    return found
