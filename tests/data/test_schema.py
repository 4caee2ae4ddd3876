"""The schema of the key ``data`` accepts what is accepted, and refuses what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.data import data_kind, dataset, resolve_data
from modwright.data.dataset import Data
from modwright.data.schema import data_schema
from recipes.json_checks import faults

ACCEPTED: list[Any] = [
    "lee",
    {"text": "lee", "length": 64, "bos": True},
    {"text": __file__, "field": "body"},
    {"images": "digits", "image_size": 16, "augment": ["hflip", {"mixup": {"prob": 0.5}}]},
    {"images": "digits", "mean": [0.5, 0.5, 0.5], "std": 0.5},
    {"super_resolution": "photos", "scale": 3},
    {"tokens": "induction-heads", "returns": 2},
    [{"text": "lee", "weight": 2}, {"text": "python-topics"}],
]
REFUSED: list[Any] = [
    {"text": "lee", "lenght": 64},
    {"text": "lee", "length": "64"},
    {"text": "lee", "field": "body"},
    {"images": "digits", "classes": ["a"]},
    {"imags": "digits"},
    {},
]


def test_what_is_accepted_fits_the_schema_and_what_is_refused_does_not() -> None:
    schema = data_schema()
    assert json.loads(json.dumps(schema)) == schema
    for given in ACCEPTED:
        resolve_data(given)
        assert list(faults(given, schema, schema)) == []
    for given in REFUSED:
        with pytest.raises(InvalidInputError):
            resolve_data(given)
        assert list(faults(given, schema, schema))


def test_options_have_their_defaults_and_what_they_mean() -> None:
    def help_of(function: Any) -> dict[str, str]:
        return {"image_size": f"of {function.__name__}"}

    entries = {entry["title"]: entry for entry in data_schema(help_of)["anyOf"][1]["oneOf"]}
    digits, folder = (entries[f"images: {name}"]["properties"] for name in ("digits", "a path"))
    assert digits["image_size"]["default"] == 32
    assert digits["image_size"]["description"] == "of digits"
    assert folder["image_size"]["default"] == 224 and "held_out" not in digits
    assert folder["images"]["pattern"] == r"^(?!(?:digits|fashion\-mnist)$)"
    assert entries["text: lee"]["properties"]["text"]["const"] == "lee"


def test_an_option_without_a_default_is_needed() -> None:
    with registries_restored():

        @data_kind("dice")
        def dice(made: int, *, sides: int) -> Data: ...

        @dataset("one", kind="dice")
        def one() -> int: ...

        entry = next(e for e in data_schema()["anyOf"][1]["oneOf"] if e["title"] == "dice: one")
        assert entry["required"] == ["dice", "sides"]
        with pytest.raises(InvalidInputError, match="needs the key sides"):
            resolve_data({"dice": "one"})
