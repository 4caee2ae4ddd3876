"""Options of methods and functions: what their docstrings say, and as mappings of a recipe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model

from modwright.core.errors import InvalidInputError, did_you_mean
from modwright.core.options import problem
from modwright.recipes.reading import Lines, Location
from modwright.recipes.schema import Strict
from modwright.surgery import method_names

__all__ = ["option_help", "options_of", "summary", "validated"]

_M = TypeVar("_M", bound=Strict)


def option_help(method: Any) -> dict[str, str]:
    """Option -> its sentence in the section ``Attributes:`` of the docstring, or ``Args:``.

    Example:
        >>> from modwright.surgery import method_type
        >>> option_help(method_type("modegpt"))["sparsity"]
        'Average share of the inner widths that goes, in [0, 1).'
    """
    if isinstance(method, type):  # options of a class that it derives from are its own, too
        found = {}
        for kind in reversed(method.__mro__):
            found.update(_said_options(vars(kind).get("__doc__")) if kind is not object else {})
        return found
    return _said_options(method.__doc__)


def _said_options(docstring: str | None) -> dict[str, str]:
    text = inspect.cleandoc(docstring or "")
    start = "Attributes:\n" if "Attributes:\n" in text else "Args:\n"
    section = text.partition(start)[2].partition("\n\n")[0]
    found = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    said = {name: " ".join(words.split()) for name, words in zip(found[1::2], found[2::2])}
    return {name: words[:1].upper() + words[1:] for name, words in said.items()}


def summary(method: Any) -> str:
    """The first sentence of a docstring."""
    return inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].replace("\n", " ")


@cache
def options_of(made: Callable[..., Any]) -> type[Strict]:
    """What a function, or a dataclass, can be called with, as a mapping of a recipe.

    Types and defaults are those of its signature, descriptions those of its docstring.

    Example:
        >>> from modwright.training import Settings
        >>> options_of(Settings).model_fields["epochs"].description
        'Passes over the data.'
    """
    hints, info = get_type_hints(made, include_extras=True), option_help(made)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(made).parameters.items():
        kind = str if hints[name] == str | Path else _as_written(hints[name])
        default: Any = ... if parameter.default is inspect.Parameter.empty else parameter.default
        if getattr(kind, "__origin__", None) is dict:
            default = {}
        fields[name] = (kind, Field(default=default, description=info.get(name)))
    found: type[Strict] = create_model(
        made.__name__, __base__=Strict, __doc__=summary(made), **fields
    )
    return found


def _as_written(hint: Any) -> Any:
    """A type as YAML gives its values: tuples are lists there."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return Annotated[(_as_written(inner), *more)]
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_as_written, get_args(hint)))]  # noqa: UP007
    return hint


def validated(
    kind: type[_M], tree: Any, lines: Lines, *, keys: str = "", under: Location = ()
) -> _M:
    """A recipe of a kind, or the mapping ``under`` a place in one, from plain values.

    What is wrong is refused in one line; ``keys`` are those that a recipe cannot do without.
    """
    if not isinstance(tree, dict):
        given = "empty" if tree is None else f"a {type(tree).__name__}"
        raise InvalidInputError(
            f"{lines.name} is {given}; a recipe is a mapping with the keys {keys}"
        )
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
    # A misspelt key is the likely cause of the one that is missing, so it goes first.
    first = min(found, key=lambda item: item["type"] != "extra_forbidden")
    at: Location = tuple(piece for piece in first["loc"] if piece != "[key]")
    if first["type"] == "invalid_key":  # a number as a key; keys are known as they are written
        at = (*at[:-1], str(at[-1]))
    kinds = ("extra_forbidden", "missing", "model_type", "string_pattern_mismatch")
    said = dict.fromkeys(kinds, partial(_of_a_mapping, at=at, root=kind))
    whole = (*under, *at)
    path = ".".join(str(piece) if str(piece).isprintable() else repr(piece) for piece in whole)
    raise InvalidInputError(f"{lines.of(whole)}, {path}: {problem(first, said)}")


def _of_a_mapping(item: Mapping[str, Any], at: Location, root: Any) -> str:
    """What a mapping, or one of its keys, is or lacks."""
    kind = item["type"]
    if kind == "model_type":
        model, optional = _model_at(root, at)
        info = f"must be a mapping with the keys {', '.join(model.valid_keys())}"
        return info + (", or null to leave it out" if optional else "")
    if kind == "missing" and at[-1] == "method":
        return f"is missing; valid values: {', '.join(method_names())}"
    model, _ = _model_at(root, at[:-1])
    if kind == "extra_forbidden":
        names = model.valid_keys()
        near = did_you_mean(at[-1], names, cutoff=0.6)
        return f"unknown key; valid keys: {', '.join(names)}{near}"
    description = model.model_fields[str(at[-1])].description
    if description and description[1:2].islower():
        description = description[0].lower() + description[1:]
    return f"is missing: {description}" if kind == "missing" else f"must be the {description}"


def _model_at(root: Any, at: Location) -> tuple[Any, bool]:
    """What a place in the recipe holds: the model of its mapping, and whether null is valid."""
    optional = False
    for piece in at:
        if isinstance(piece, int):
            continue
        annotation = root.model_fields[piece].annotation
        kinds = getattr(annotation, "__args__", (annotation,))
        optional = type(None) in kinds
        root = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return root, optional
