"""Datasets are found by kind and name; a recipe's key becomes one, or is refused in one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.core.errors import InvalidInputError
from modwright.core.plugins import add_plugin, plugins_restored
from modwright.core.registry import registries_restored
from modwright.data import Data, TensorRows, data_kind, dataset, datasets, make_data, resolve_data
from modwright.data.registry import KINDS, datasets_of, make_source
from modwright.data.text_sources import load_text
from modwright.data.tokenizers import byte_tokenizer

BYTES = byte_tokenizer()


@pytest.fixture
def restored() -> Iterator[None]:
    with registries_restored():
        yield


def test_every_dataset_is_of_a_known_kind_and_says_where_it_is_from() -> None:
    found = datasets()
    assert {info.kind for info in found} <= set(KINDS.names())
    assert {("text", "lee"), ("images", "digits")} <= {(info.kind, info.name) for info in found}
    assert not [info.name for info in found if not info.source or not info.license]
    assert all(KINDS[kind].measured_by for kind in KINDS.names())


def test_a_dataset_from_outside_is_one_function(restored: None) -> None:
    @dataset("counting", kind="text", license="CC0-1.0", source="a loop")
    def counting(to: int = 3) -> list[str]:
        return [str(i) * 4 for i in range(to)]

    data = make_data({"text": "counting", "to": 2, "length": 5}, BYTES)
    assert (data.kind, data.name, data.license) == ("text", "counting", "CC0-1.0")
    assert data.options == {"text": "counting", "to": 2, "length": 5, "windows": None} | {
        "bos": "auto",
        "held_out": 0.0,
    }
    assert BYTES.decode(data.train[0]["input_ids"]) == "0000\n"
    assert load_text("counting") == "0000\n\n1111\n\n2222"
    assert load_text({"text": "counting", "to": 1}) == "0000"
    assert data.facts()["rows"] == {"train": 2} and "a loop, CC0-1.0" in data.describe()


def test_a_kind_from_outside_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "series.py"
    file.write_text(
        "import torch\n"
        "from modwright.data import Data, TensorRows, data_kind, dataset\n"
        "@data_kind('series', measured_by='accuracy')\n"
        "def series(made, *, scale: float = 1.0):\n"
        "    return Data(TensorRows({'values': made * scale}))\n"
        "@dataset('ramp', kind='series', license='CC0-1.0', source='drawn')\n"
        "def ramp(steps: int = 4):\n"
        "    return torch.arange(steps).float().view(-1, 1)\n"
    )
    with registries_restored(), plugins_restored():
        add_plugin(file)
        assert "series" in KINDS and KINDS["series"].measured_by == "accuracy"
        data = make_data({"series": "ramp", "steps": 2, "scale": 3})
        assert [row["values"].item() for row in (data.train[0], data.train[1])] == [0.0, 3.0]
        with pytest.raises(InvalidInputError, match=r"unknown series dataset 'rampe'.*'ramp'"):
            make_data({"series": "rampe"})
    assert "series" not in KINDS


def test_names_are_unique_within_a_kind(restored: None) -> None:
    @dataset("lee", kind="images")
    def images() -> None: ...

    with pytest.raises(InvalidInputError, match="text dataset called 'lee' is registered already"):

        @dataset("lee", kind="text")
        def text() -> str:
            return ""

    with pytest.raises(InvalidInputError, match=r"unknown kind of data 'texts'.*'text'"):
        dataset("new", kind="texts")
    with pytest.raises(InvalidInputError, match="'images' is registered already"):

        @data_kind("images")
        def other(made: Any) -> Data:
            return Data(TensorRows({}))


def test_a_kind_gives_both_functions_an_option_of_one_name(restored: None) -> None:
    @data_kind("dice")
    def dice(made: int, *, seed: int = 0, name: str = "") -> Data:
        return Data(TensorRows({"x": torch.tensor([made, seed])}), notes=(name,))

    @dataset("two", kind="dice")
    def two(seed: int = 0) -> int:
        return seed * 2

    data = make_data({"dice": "two", "seed": 3})
    assert [int(row["x"]) for row in (data.train[0], data.train[1])] == [6, 3]
    assert data.notes == ("two",) and data.options == {"dice": "two", "seed": 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs one of the keys chat, images"),
        ({"txt": "lee"}, "unknown kind of data 'txt'.*'text'"),
        ({"text": "lee", "images": "digits"}, "of one kind, not of text and images"),
        ({"text": "leee"}, r"unknown text dataset 'leee'.*did you mean 'lee'\?.*a text file"),
        ({"text": 3}, "data.text is a name or a path, not 3"),
        ({"text": "lee", "lenght": 3}, "unknown key of data.text 'lee' 'lenght'.*'length'"),
        ({"text": "lee", "length": "3"}, "length: must be a whole number, not '3'"),
        ({"text": "lee", "length": True}, "length: must be a whole number"),
        ({"text": "lee", "bos": "yes"}, "bos"),
        ({"text": "lee", "field": "x"}, "unknown key of data.text 'lee' 'field'"),
        ([], "the list is empty"),
        ([{"text": "lee", "weight": 0}], "weight is a number above 0, not 0"),
        ([{"text": "lee", "weight": "2"}], "weight is a number above 0, not '2'"),
        (7, "must be a name, a mapping .* not int"),
        ([[{"text": "lee"}]], "must be a name, a mapping .* not list"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(given: Any, said: str) -> None:
    for function in (resolve_data, make_data):
        with pytest.raises(InvalidInputError, match=said) as refusal:
            function(given)
        assert "\n" not in str(refusal.value)


def test_text_needs_a_tokenizer_and_images_do_not() -> None:
    with pytest.raises(InvalidInputError, match="'text' needs a tokenizer, and there is none"):
        make_data("lee")
    assert KINDS["text"].needs_tokenizer and not KINDS["images"].needs_tokenizer


def test_resolved_data_is_what_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be " * 9)
    given = [{"text": str(tmp_path / "a.txt"), "length": 16, "weight": 2}, "lee"]
    full = resolve_data(given)
    assert full[0]["encoding"] == "utf-8" and full[0]["weight"] == 2 and full[1]["weight"] == 1
    assert resolve_data(full) == full
    one, again = (make_data(entry, BYTES) for entry in (given[:1], full[:1]))
    assert one.digest == again.digest and one.options["length"] == 16


def test_what_a_text_source_alone_is_asked_for_has_no_options_of_rows() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown key of data.text 'lee' here 'length'"):
        make_source("text", {"text": "lee", "length": 5})
    with pytest.raises(InvalidInputError, match="kind 'text' is needed, not 'images'"):
        make_source("text", {"images": "digits"})


def test_names_of_datasets_stand_in_their_registry_alone() -> None:
    """No literal collection outside of data/ holds two names of datasets of a kind."""
    kinds = [set(datasets_of(kind).names()) for kind in KINDS.names()]
    wrong = []
    root = Path(modwright.__file__).parent
    for file in root.rglob("*.py"):
        if file.is_relative_to(root / "data"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            entries = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            held = {entry.value for entry in entries if isinstance(entry, ast.Constant)}
            if any(len(held & names) > 1 for names in kinds):
                wrong.append(f"{file.relative_to(root)}:{node.lineno}")
    assert wrong == []
