"""As much of JSON Schema as the schema of recipes uses: says why a value does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["USED", "faults"]

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
_WORDS = {"title", "description", "default", "$schema", "$defs"}
USED = _WORDS | {"type", "properties", "required", "additionalProperties", "items", "prefixItems"}
USED |= {"minItems", "enum", "const", "minimum", "pattern", "anyOf", "oneOf", "$ref"}


def faults(value: Any, schema: Any, whole: Any) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{value!r} may not be there"
        return
    unknown = set(schema) - USED
    assert not unknown, f"this checker does not know {unknown}"
    if "$ref" in schema:
        yield from faults(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole)
    for name, least, most in (("anyOf", 1, 99), ("oneOf", 1, 1)):
        if name in schema:
            fitting = sum(not any(faults(value, one, whole)) for one in schema[name])
            if not least <= fitting <= most:
                yield f"{value!r} fits {fitting} of {name}"
    if "type" in schema and (
        not isinstance(value, _TYPES[schema["type"]])
        or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        yield f"{value!r} is no {schema['type']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{value!r} is none of {schema['enum']}"
    if "minimum" in schema and isinstance(value, int) and value < schema["minimum"]:
        yield f"{value!r} is less than {schema['minimum']}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{value!r} does not match"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield "too few entries"
        for entry in value:
            yield from faults(entry, schema.get("items", True), whole)
    if isinstance(value, dict):
        named = schema.get("properties", {})
        yield from (f"{key!r} is missing" for key in schema.get("required", ()) if key not in value)
        for key, entry in value.items():
            rest = schema.get("additionalProperties", True)
            yield from faults(entry, named.get(key, rest), whole)
