"""Options of a dataclass from plain values: checked, and what is wrong said in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from modwright.core.errors import InvalidInputError, did_you_mean, unknown_name

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["checked_options", "make_options", "one_line", "problem", "shown"]

T = TypeVar("T")
Problem = Callable[[Mapping[str, Any]], str]

# What pydantic's kinds of problems are called, with what it tells of each.
_PROBLEMS = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("dict_type", "model_type"), "must be a mapping of names to values"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("int_parsing", "int_type"), "must be a whole number"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list, whose entries begin with '- '"),
    "extra_forbidden": "is not one of the valid keys",
    "greater_than_equal": "must be {ge} or more",
    "invalid_key": "a key must be text",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string_type": "must be text",
    "too_short": "must have at least one entry",
    "value_error": "{error}",
}


def make_options(
    kind: Callable[..., T],
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    strict: bool = True,
    word: str = "option",
) -> T:
    """A dataclass of plain values, each checked by its type; a list stands for a tuple.

    Where it is strict, text does not stand for numbers and booleans. Messages call the dataclass by
    its ``name``, and one of its values by the ``word``.

    Raises:
        InvalidInputError: an unknown option, one that is missing, or an invalid value.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Cut:
        ...     n: int = 0
        >>> make_options(Cut, "cut", {"n": "x"})
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: cut: n: must be a whole number, not 'x'
    """
    return kind(**checked_options(kind, name, options, strict=strict, word=word))


def checked_options(
    kind: Callable[..., Any],
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    strict: bool = True,
    word: str = "option",
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """What a dataclass or a function is called with, checked as :func:`make_options` does it.

    Parameters that are ``left_out`` are no options: whoever calls it gives them.

    Example:
        >>> checked_options(sorted, "sorting", {"reverse": True}, left_out=["iterable", "key"])
        {'reverse': True}
    """
    from pydantic import TypeAdapter, ValidationError

    given = dict(options or {})
    parameters = {
        key: one for key, one in signature(kind).parameters.items() if key not in left_out
    }
    for key in given:
        if key not in parameters:
            raise unknown_name(f"{word} of {name}", key, parameters)
    needed = [key for key, one in parameters.items() if one.default is Parameter.empty]
    missing = [key for key in needed if key not in given]
    if missing:
        raise InvalidInputError(f"{name}: needs the {word} {', '.join(missing)}")
    hints = get_type_hints(kind, include_extras=True)
    wrong: list[str] = []
    for key, value in given.items():
        plain = tuple(value) if isinstance(value, list) else value
        try:
            given[key] = TypeAdapter(hints.get(key, Any)).validate_python(plain, strict=strict)
        except ValidationError as error:
            wrong.append(one_line(error, (key,)))
            continue
        if isinstance(given[key], int) and not -(2**63) <= given[key] < 2**63:
            wrong.append(f"{key}: must be a number of at most 64 bits, not {shown(value)}")
    if wrong:
        raise InvalidInputError(f"{name}: {'; '.join(wrong)}")
    return given


def one_line(
    error: ValidationError,
    under: Sequence[str | int] = (),
    said: Mapping[str, Problem] | None = None,
) -> str:
    """What pydantic found, in one line: where, what it must be and what it was.

    What stands in ``under`` is put before each place; ``said`` is as :func:`problem` takes it.
    """
    return "; ".join(
        f"{'.'.join(map(str, (*under, *item['loc'])))}: {problem(item, said)}"
        for item in error.errors()
    )


def problem(item: Mapping[str, Any], said: Mapping[str, Problem] | None = None) -> str:
    """One entry of ``ValidationError.errors()`` in words, with the value and the nearest valid one.

    For a type of problem that is in ``said``, that gives the words.
    """
    kind, about = item["type"], item.get("ctx", {})
    expected = str(about.get("expected", ""))
    if said and kind in said:
        told = said[kind](item)
    elif kind in _PROBLEMS:
        as_yaml = re.sub(r"\b(True|False)\b", lambda found: found[0].lower(), expected)
        told = _PROBLEMS[kind].format_map({**about, "expected": as_yaml})
    else:
        told = item["msg"][0].lower() + item["msg"][1:]
    if kind in ("missing", "extra_forbidden"):
        return told
    near = did_you_mean(item["input"], re.findall(r"'([^']*)'", expected), cutoff=0.4)
    return f"{told}, not {shown(item['input'])}{near}"


def shown(value: Any) -> str:
    """A value as a recipe has it, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
