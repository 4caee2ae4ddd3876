from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from modwright.core.errors import InvalidInputError
from modwright.core.options import make_options, one_line, shown


@dataclass(frozen=True)
class Cut:
    target: Literal["attention", "mlp"]
    n: int = 0
    share: float = 0.5
    pairs: tuple[str, ...] = ("mlp",)
    quick: bool = False
    seen: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.n < 0:
            raise InvalidInputError("n is 0 or more")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "cut: needs the option target"),
        ({"target": "mlp", "m": 1}, "unknown option of cut 'm'; valid values: target, n, share, "),
        ({"target": "mpl"}, "cut: target: must be 'attention' or 'mlp', not 'mpl' (did you mean "),
        ({"target": "mlp", "n": "x"}, "cut: n: must be a whole number, not 'x'"),
        ({"target": "mlp", "n": 2**70}, "cut: n: must be a number of at most 64 bits, not 118059"),
        ({"target": "mlp", "n": True}, "cut: n: must be a whole number, not true"),
        ({"target": "mlp", "quick": 1}, "cut: quick: must be true or false, not 1"),
        ({"target": "mlp", "share": None}, "cut: share: must be a number, not null"),
        ({"target": "mlp", "pairs": ["mlp", 3]}, "cut: pairs.1: must be text, not 3"),
        ({"target": "mlp", "n": "x", "share": "y"}, "whole number, not 'x'; share: must be a num"),
        ({"target": "mlp", "seen": [1]}, "unknown option of cut 'seen'"),
        ({"target": "mlp", "n": -1}, "n is 0 or more"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        make_options(Cut, "cut", options)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_text_stands_for_numbers_where_that_is_wanted() -> None:
    made = make_options(Cut, "cut", {"target": "mlp", "n": "3", "quick": "yes"}, strict=False)
    assert (made.n, made.quick) == (3, True)


def test_lists_stand_for_tuples() -> None:
    assert make_options(Cut, "cut", {"target": "mlp", "pairs": ["a", "b"]}).pairs == ("a", "b")


def test_places_inside_are_named() -> None:
    class Inner(BaseModel):
        sizes: list[int]

    with pytest.raises(ValidationError) as raised:
        Inner.model_validate({"sizes": [1, "a", {}]})
    said = one_line(raised.value, ("steps", 0))
    assert said.startswith("steps.0.sizes.1: must be a whole number, not 'a'; ")
    assert "; steps.0.sizes.2: must be a whole number, not {}" in said


def test_long_values_are_shortened() -> None:
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown(None) == "null" and shown(True) == "true"
