"""Options of a dataclass from plain values: checked, and what is wrong said in one line."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from modwright.core.errors import InvalidInputError, did_you_mean, unknown_name

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["make_options", "one_line", "problem", "shown"]

T = TypeVar("T")
Problem = Callable[[Mapping[str, Any]], str]

_PROBLEMS: dict[str, Problem] = {
    "bool_parsing": lambda item: "must be true or false",
    "bool_type": lambda item: "must be true or false",
    "dict_type": lambda item: "must be a mapping of names to values",
    "float_parsing": lambda item: "must be a number",
    "float_type": lambda item: "must be a number",
    "greater_than_equal": lambda item: f"must be {item['ctx']['ge']} or more",
    "int_parsing": lambda item: "must be a whole number",
    "int_type": lambda item: "must be a whole number",
    "extra_forbidden": lambda item: "is not one of the valid keys",
    "invalid_key": lambda item: "a key must be text",
    "less_than_equal": lambda item: f"must be {item['ctx']['le']} or less",
    "list_type": lambda item: "must be a list, whose entries begin with '- '",
    "literal_error": lambda item: f"must be {_as_yaml_writes(item['ctx']['expected'])}",
    "missing": lambda item: "is missing",
    "model_type": lambda item: "must be a mapping of names to values",
    "string_type": lambda item: "must be text",
    "too_short": lambda item: "must have at least one entry",
    "tuple_type": lambda item: "must be a list, whose entries begin with '- '",
    "value_error": lambda item: str(item["ctx"]["error"]),
}
_WITHOUT_VALUE = ("missing", "extra_forbidden")


def make_options(
    kind: Callable[..., T],
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    strict: bool = True,
    word: str = "option",
) -> T:
    """A dataclass of plain values, each checked by its type.

    Args:
        kind: the dataclass.
        name: what messages call it.
        options: a list stands for a tuple.
        strict: text does not stand for numbers and booleans.
        word: what messages call one of the values.

    Raises:
        InvalidInputError: an unknown option, one that is missing, or an invalid value; one line
            each.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Cut:
        ...     n: int = 0
        >>> make_options(Cut, "cut", {"n": 2})
        Cut(n=2)
        >>> make_options(Cut, "cut", {"n": "x"})
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: cut: n: must be a whole number, not 'x'
    """
    from pydantic import TypeAdapter, ValidationError

    given = dict(options or {})
    fields = [field for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    names = [field.name for field in fields]
    for key in given:
        if key not in names:
            raise unknown_name(f"{word} of {name}", key, names)
    missing = [field.name for field in fields if _is_needed(field) and field.name not in given]
    if missing:
        raise InvalidInputError(f"{name}: needs the {word} {', '.join(missing)}")
    hints = get_type_hints(kind, include_extras=True)
    checked: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in given.items():
        plain = tuple(value) if isinstance(value, list) else value
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(plain, strict=strict)
        except ValidationError as error:
            wrong.append(one_line(error, (key,)))
    if wrong:
        raise InvalidInputError(f"{name}: {'; '.join(wrong)}")
    return kind(**checked)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def one_line(
    error: ValidationError,
    under: Sequence[str | int] = (),
    said: Mapping[str, Problem] | None = None,
) -> str:
    """What pydantic found, in one line: where, what it must be and what it was.

    Args:
        error: as it was raised.
        under: what stands before each place.
        said: as :func:`problem` takes it.

    Example:
        >>> from pydantic import TypeAdapter, ValidationError
        >>> try:
        ...     _ = TypeAdapter(list[int]).validate_python([1, "x"], strict=True)
        ... except ValidationError as error:
        ...     print(one_line(error, ["sizes"]))
        sizes.1: must be a whole number, not 'x'
    """
    return "; ".join(
        f"{'.'.join(map(str, (*under, *item['loc'])))}: {problem(item, said)}"
        for item in error.errors()
    )


def problem(item: Mapping[str, Any], said: Mapping[str, Problem] | None = None) -> str:
    """One entry of ``ValidationError.errors()`` in words, with the value and the nearest valid one.

    Args:
        item: the entry.
        said: type of problem -> words for it, where the usual ones do not do.
    """
    say = {**_PROBLEMS, **(said or {})}.get(item["type"], _as_pydantic_says)
    told = say(item)
    if item["type"] in _WITHOUT_VALUE:
        return told
    valid = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    near = did_you_mean(item["input"], valid, cutoff=0.4)
    return f"{told}, not {shown(item['input'])}{near}"


def shown(value: Any) -> str:
    """A value as a recipe has it, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_yaml_writes(expected: str) -> str:
    return re.sub(r"\b(True|False)\b", lambda found: found[0].lower(), expected)


def _as_pydantic_says(item: Mapping[str, Any]) -> str:
    return str(item["msg"][0].lower() + item["msg"][1:])
