"""Commands that are made from registered dataclasses: an option for every field."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer import Option

from modwright.recipes.options import option_help

__all__ = ["command_of"]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command_of(name: str, kind: type[Any], run: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a dataclass, and the common ones that ``run`` takes.

    Args:
        name: that is registered.
        run: called with the name, the options by name, and what it takes beside them.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}

    def command(**given: Any) -> None:
        options = {key: given.pop(key) for key in fields if key in given}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        run(name, plain, **given)

    common = list(inspect.signature(run, eval_str=True).parameters.values())[2:]
    # An own option stands in front of a common one of the same name.
    parameters = [p.replace(kind=_KEYWORD) for p in common if p.name not in fields]
    parameters += _options(kind, fields)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _options(kind: type[Any], fields: dict[str, Any]) -> list[inspect.Parameter]:
    hints, info = get_type_hints(kind), option_help(kind)
    made = []
    for name, field in fields.items():
        flag = name.replace("_", "-")
        annotation = _plain(hints[name])
        words = info.get(name, "")
        if get_origin(annotation) is list:
            words += f" Repeat --{flag} for each."
        option = Option(
            f"--{flag}/--no-{flag}" if annotation is bool else f"--{flag}",
            help=words,
            metavar="|".join(_valid(hints[name])) or None,
        )
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        made.append(
            inspect.Parameter(
                name, _KEYWORD, default=default, annotation=Annotated[annotation, option]
            )
        )
    return made


def _valid(hint: Any) -> list[str]:
    """The words that an option takes, where they are few."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for inner in get_args(hint) for word in _valid(inner)]


def _plain(hint: Any) -> Any:
    """A type that the argument parser knows. What is valid is checked by the dataclass itself."""
    origin = get_origin(hint)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    if origin in (Union, types.UnionType):
        inner = [_plain(part) for part in get_args(hint) if part is not type(None)]
        return inner[0] | None
    return hint
