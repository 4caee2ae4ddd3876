"""What may stand at a place of a block by name, and the arguments that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from dataclasses import fields as fields_of
from typing import Any

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.edits.registry import KIND_AT, PARTS, component_named, is_registered, part_names

__all__ = ["Argument", "Arguments", "arguments_of"]

_OF_HOST = ("self", "config", "current", "as_tuple", "whole")


@dataclass(frozen=True)
class Argument:
    """One that a component takes: whether it must be given, and is as in the stock part if not."""

    needed: bool
    of_stock: bool = False


class Arguments(dict[str, Argument]):
    """Name -> argument; ``others`` says that those which are not named are taken, too."""

    others = False


def arguments_of(name: str, place: str) -> Arguments:
    """The arguments of what a name stands for.

    Args:
        name: of a registered part or component.
        place: "attention" or "mlp".

    Raises:
        InvalidInputError: the name is not known, or stands elsewhere.

    Example:
        >>> taken = arguments_of("feed_forward", "mlp")
        >>> [argument for argument in taken if taken[argument].needed]
        ['hidden_size', 'intermediate_size', 'activation']
    """
    if not is_registered(name):
        raise unknown_name("component", name, part_names())
    component = component_named(name, KIND_AT[place])
    if component is not None and component.kind != KIND_AT[place]:
        raise InvalidInputError(
            f"{name} is of the kind {component.kind}; at {place} stands a {KIND_AT[place]}"
        )
    if component is not None and component.shape is not None:
        return Arguments(
            (field.name, Argument(field.default is MISSING, of_stock=True))
            for field in fields_of(component.shape)
        )
    return _parameters(PARTS[name] if component is None else component.make)


def _parameters(make: Callable[..., Any]) -> Arguments:
    found = Arguments()
    for parameter in inspect.signature(make).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            found.others = True
        elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name not in _OF_HOST:
            found[parameter.name] = Argument(parameter.default is parameter.empty)
    return found
