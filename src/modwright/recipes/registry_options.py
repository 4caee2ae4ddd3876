"""One of several things by name, with the options of that one beside the name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, ValidationError, create_model

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.recipes.options import option_help, summary
from modwright.recipes.reading import Location
from modwright.recipes.schema import Strict
from modwright.recipes.validation_errors import explain, position_of

__all__ = ["RegistryOption", "options_of"]


@cache
def options_of(made: Callable[..., Any]) -> type[Strict]:
    """What a function, or a dataclass, can be called with, as a mapping of a recipe.

    Types and defaults are those of its signature, descriptions those of its docstring.

    Example:
        >>> from modwright.tasks.pictures import digits
        >>> options_of(digits).model_fields["side"].description
        'Of the images, in pixels.'
    """
    hints, info = get_type_hints(made), option_help(made)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(made).parameters.items():
        kind = str if hints[name] == str | Path else hints[name]
        default: Any = ... if parameter.default is inspect.Parameter.empty else parameter.default
        if getattr(kind, "__origin__", None) is dict:
            default = {}
        fields[name] = (kind, Field(default=default, description=info.get(name)))
    found: type[Strict] = create_model(
        made.__name__, __base__=Strict, __doc__=summary(made), **fields
    )
    return found


@dataclass(frozen=True)
class RegistryOption:
    """Which of several things a mapping of a recipe asks for.

    Attributes:
        at: where the mapping stands in the recipe.
        key: the key whose value is the name.
        makers: name -> what makes the thing of its options.
    """

    at: str
    key: str
    makers: Mapping[str, Callable[..., Any]]

    def resolved(
        self, given: Mapping[str, Any], positions: Mapping[Location, str], name: str
    ) -> dict[str, Any]:
        """The mapping with every default written out.

        Raises:
            InvalidInputError: no name, an unknown one, or options that are not its own.
        """
        valid = ", ".join(self.makers)
        if self.key not in given:
            where = position_of((self.at,), positions, name)
            raise InvalidInputError(
                f"{where}, {self.at}.{self.key}: is missing; valid values: {valid}"
            )
        chosen = given[self.key]
        if chosen not in self.makers:
            where = position_of((self.at, self.key), positions, name)
            problem = unknown_name(self.key, chosen, self.makers)
            raise InvalidInputError(f"{where}, {self.at}.{self.key}: {problem}")
        options = options_of(self.makers[chosen])
        try:
            found = options.model_validate({k: v for k, v in given.items() if k != self.key})
        except ValidationError as error:
            info = explain(error, options, positions, name, (self.at,))
            raise InvalidInputError(info) from None
        return {self.key: chosen, **found.model_dump(mode="json")}

    def make(self, resolved: Mapping[str, Any]) -> Any:
        """The thing that a resolved mapping asks for."""
        options = {key: value for key, value in resolved.items() if key != self.key}
        return self.makers[resolved[self.key]](**options)

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        return {"oneOf": [self._schema_of(name) for name in self.makers]}

    def _schema_of(self, name: str) -> dict[str, Any]:
        found = options_of(self.makers[name]).model_json_schema()
        found["properties"] = {self.key: {"const": name}, **found.get("properties", {})}
        return {**found, "title": name, "required": [self.key, *found.get("required", [])]}
