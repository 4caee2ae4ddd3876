"""Text is found by name or path, rows are read as rows, and what cannot be read is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from modwright.core.errors import InvalidInputError
from modwright.data.text_sources import TextData, load_text, text_names


def test_packaged_texts_are_found_without_importing_their_package():
    assert text_names()[:3] == ("fortunes", "lee", "lee-background")
    assert load_text("lee").startswith("The national executive of the strife-torn Democrats")
    assert len(load_text("lee")) == 24_658
    assert len(load_text("lee-background").split("\n")) == 300
    assert "gensim" not in sys.modules


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"gensim.*pip install --no-deps gensim"):
        load_text("lee")


def test_an_unknown_name_lists_the_names_and_the_nearest():
    with pytest.raises(
        InvalidInputError, match=r"lee, lee-background, .*\(did you mean 'lee'\?\).*path"
    ):
        load_text("leee")
    with pytest.raises(InvalidInputError, match="valid values: fortunes, lee"):
        load_text("")


def test_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("één\r\n\r\n twee ".encode())
    assert load_text(str(path)) == "één\r\n\r\n twee "


def test_the_wrong_encoding_is_refused_with_the_file_named(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"old\.txt cannot be read as 'utf-8'.*latin-1"):
        load_text(str(path))
    assert load_text(TextData(str(path), encoding="latin-1")) == "é"
    with pytest.raises(InvalidInputError, match="utf-9"):
        load_text(TextData(str(path), encoding="utf-9"))


def test_a_directory_joins_its_text_files_in_order(tmp_path):
    for name, said in {
        "b.txt": "two",
        "a": "one",
        "c.dat": "no",
        ".hidden": "no",
        "d.md": "# 3",
    }.items():
        (tmp_path / name).write_text(said)
    (tmp_path / "folder").mkdir()
    assert load_text(str(tmp_path)) == "one\n\ntwo\n\n# 3"
    with pytest.raises(InvalidInputError, match=r"holds no text: expected \*\.txt or \*\.md"):
        load_text(str(tmp_path / "folder"))


@pytest.mark.parametrize("said", ["", " \n\n"])
def test_an_empty_text_is_refused(tmp_path, said):
    path = tmp_path / "empty.txt"
    path.write_text(said)
    with pytest.raises(InvalidInputError, match="is empty"):
        load_text(str(path))


def test_a_split_of_plain_text_is_refused_rather_than_ignored():
    with pytest.raises(InvalidInputError, match="split 'test' has no meaning"):
        load_text(TextData("lee", split="test"))
    with pytest.raises(InvalidInputError, match="column 'body' has no meaning"):
        load_text(TextData("lee", column="body"))


def test_saved_datasets_are_read_by_split_and_column(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"body": ["w1 w2", "", "w3"], "number": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(test=rows).save_to_disk(str(tmp_path / "many"))
    one, many = (f"datasets:{tmp_path / name}" for name in ("one", "many"))
    assert load_text(TextData(one, column="body")) == "w1 w2\n\n\n\nw3"
    assert load_text(TextData(many, split="test", column="body")) == "w1 w2\n\n\n\nw3"
    with pytest.raises(InvalidInputError, match=r"split .*'train'; valid values: test"):
        load_text(TextData(many, column="body"))
    with pytest.raises(InvalidInputError, match=r"column .*'text'; valid values: body, number"):
        load_text(one)
    with pytest.raises(InvalidInputError, match="is int; it must be text"):
        load_text(TextData(one, column="number"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps([{"text": "w1"}, {"text": "w2"}])),
        ("rows.jsonl", '{"text": "w1"}\n{"text": "w2"}\n'),
        ("rows.csv", "text,other\nw1,5\nw2,6\n"),
        ("rows.txt", "w1\nw2\n"),
    ],
)
def test_local_files_are_read_through_datasets(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_text(f"datasets:{tmp_path / name}") == "w1\n\nw2"
    with pytest.raises(InvalidInputError, match="valid values: train"):
        load_text(TextData(f"datasets:{tmp_path / name}", split="test"))


def test_what_datasets_cannot_read_is_one_line(tmp_path):
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(InvalidInputError, match=r"suffix '\.xml'; valid values: \.json"):
        load_text(f"datasets:{tmp_path / 'rows.xml'}")
    with pytest.raises(InvalidInputError, match="save_to_disk") as refusal:
        load_text(f"datasets:{tmp_path / 'nowhere'}")
    assert "\n" not in str(refusal.value)


def test_missing_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInputError, match=r"pip install modwright\[text\]"):
        load_text("datasets:anything")


def _rows(folder: Path, suffix: str, column: str) -> str:
    """A file of two rows, "één" and "w2"."""
    path = folder / f"rows{suffix}"
    words = ["één", "w2"]
    records = [{"number": at, column: word} for at, word in enumerate(words)]
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif suffix in (".jsonl", ".ndjson", ".JSONL"):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in records), encoding="utf-8")
    else:
        between = "\t" if suffix == ".tsv" else ","
        lines = [f"number{between}{column}", *(f"{at}{between}{w}" for at, w in enumerate(words))]
        path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


SUFFIXES = [".jsonl", ".ndjson", ".JSONL", ".json", ".csv", ".tsv", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fault_A14_files_of_rows_are_read_as_rows(tmp_path: Path, suffix: str) -> None:
    assert load_text(_rows(tmp_path, suffix, "text")) == "één\n\nw2"
    named = _rows(tmp_path, suffix, "body")
    assert load_text(TextData(named, column="body")) == "één\n\nw2"
    with pytest.raises(InvalidInputError, match="'text'; valid values: number, body") as refusal:
        load_text(named)
    assert "\n" not in str(refusal.value)


def test_fault_A14_a_file_of_rows_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl", "a.parquet"):
        (tmp_path / name).write_text("no rows here")
        with pytest.raises(InvalidInputError, match="cannot be read") as refusal:
            load_text(str(tmp_path / name))
        assert "\n" not in str(refusal.value)


def test_rows_in_another_encoding_are_read_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_bytes("text,number\né,1\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_text(str(path))
    assert load_text(TextData(str(path), encoding="latin-1")) == "é"


def test_fortunes_are_there_where_they_can_be_installed() -> None:
    if not Path("/usr/share/games/fortunes").is_dir():
        if os.environ.get("MODWRIGHT_REQUIRE_FORTUNES") == "1":
            pytest.fail("MODWRIGHT_REQUIRE_FORTUNES=1, but Debian's fortunes are not installed")
        pytest.skip("Debian's fortunes are not installed")
    assert len(load_text("fortunes").encode()) > 1_000_000
