"""What is wrong with a mapping of a recipe: its line, its value and what would be valid."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from modwright.core.errors import InvalidInputError, did_you_mean
from modwright.core.options import problem
from modwright.recipes.reading import Location
from modwright.recipes.schema import Strict
from modwright.surgery import method_names

__all__ = ["explain", "position_of", "validated"]

_M = TypeVar("_M", bound=Strict)


def position_of(at: Location, positions: Mapping[Location, str], name: str) -> str:
    """Where a value was written, or else the nearest mapping or list around it."""
    return next((positions[at[:n]] for n in range(len(at), -1, -1) if at[:n] in positions), name)


def explain(
    error: ValidationError,
    root: type[Strict],
    positions: Mapping[Location, str],
    name: str,
    under: Location = (),
) -> str:
    """What pydantic found, in one line.

    Args:
        error: of validating ``root``.
        root: what the mapping should be.
        positions: where each value was written.
        name: what is named where no place is known.
        under: where the mapping stands in the recipe; the recipe itself by default.
    """
    # A misspelt key is the likely cause of the one that is missing, so it goes first.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    at: Location = tuple(piece for piece in first["loc"] if piece != "[key]")
    if first["type"] == "invalid_key":  # a number as a key; places know keys as they are written
        at = (*at[:-1], str(at[-1]))
    said = {kind: partial(log, at=at, root=root) for kind, log in _OF_A_MAPPING.items()}
    whole = (*under, *at)
    where = f"{position_of(whole, positions, name)}, {'.'.join(map(_word, whole))}"
    return f"{where}: {problem(first, said)}"


def validated(kind: type[_M], tree: Any, where: Mapping[Location, str], name: str, keys: str) -> _M:
    """A recipe of a kind from plain values.

    Args:
        kind: what it is checked against.
        tree: the values.
        where: each was written.
        name: what messages call the recipe where no place is known.
        keys: that it cannot do without, in words.

    Raises:
        InvalidInputError: it is no mapping, or a value is not valid.
    """
    if not isinstance(tree, dict):
        given = "empty" if tree is None else f"a {type(tree).__name__}"
        raise InvalidInputError(f"{name} is {given}; a recipe is a mapping with the keys {keys}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError(explain(error, kind, where, name)) from None


def _word(piece: str | int) -> str:
    """A piece of a path, on one line."""
    return str(piece) if str(piece).isprintable() else repr(piece)


def _unknown_key(item: Mapping[str, Any], at: Location, root: Any) -> str:
    model, _ = _at(root, at[:-1])
    names = model.valid_keys()
    return f"unknown key; valid keys: {', '.join(names)}{did_you_mean(at[-1], names, cutoff=0.6)}"


def _missing(item: Mapping[str, Any], at: Location, root: Any) -> str:
    if at[-1] == "method":
        return f"is missing; valid values: {', '.join(method_names())}"
    model, _ = _at(root, at[:-1])
    return f"is missing: {model.model_fields[str(at[-1])].description}"


def _mapping(item: Mapping[str, Any], at: Location, root: Any) -> str:
    model, optional = _at(root, at)
    info = f"must be a mapping with the keys {', '.join(model.valid_keys())}"
    return info + (", or null to leave it out" if optional else "")


def _pattern(item: Mapping[str, Any], at: Location, root: Any) -> str:
    model, _ = _at(root, at[:-1])
    return f"must be the {model.model_fields[str(at[-1])].description}"


_OF_A_MAPPING = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "model_type": _mapping,
    "string_pattern_mismatch": _pattern,
}


def _at(root: Any, at: Location) -> tuple[Any, bool]:
    """What a place in the recipe holds: the model of its mapping, and whether null is valid."""
    model: Any = root
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
