"""Files of rows are read row by row, and what cannot be read is named with its line."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.data.row_files import SUFFIXES, is_row_file, read_rows

ROWS = [{"text": "één\nline", "number": 1}, {"text": "", "number": 2}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(
                stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_mappings_in_order(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    found = list(read_rows(path))
    assert [row["text"] for row in found] == ["één\nline", ""]
    assert [str(row["number"]) for row in found] == ["1", "2"]
    assert is_row_file(path) and is_row_file(path.rename(tmp_path / f"rows{suffix.upper()}"))
    assert not is_row_file(tmp_path / f"none{suffix}") and not is_row_file(tmp_path / "a.txt")


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert list(read_rows(tmp_path / "a.json")) == ROWS


def test_lines_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "w"}\n' * 2 + "broken\n")
    assert [row["text"] for row in islice(read_rows(path), 2)] == ["w", "w"]
    with pytest.raises(InvalidInputError, match="line 3 is no JSON"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": 1}\n[2]\n', "line 2 is list, not an object"),
        ("a.json", "[1, 2]", "entry 0 is int, not an object"),
        ("a.json", '[{"a": 1}', "no JSON"),
        ("a.csv", "text,b\none\n", "a row has not as many fields as the first"),
        ("a.csv", "text\none,two\n", "a row has not as many fields as the first"),
        ("a.parquet", "no rows here", "cannot be read"),
        ("a.xml", "<a/>", r"unknown suffix of a file of rows '\.xml'; valid values: \.json"),
    ],
)
def test_what_holds_no_rows_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=said) as refusal:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_the_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\né\n".encode("latin-1"))
    assert next(read_rows(tmp_path / "a.csv", "latin-1")) == {"text": "é"}
    for encoding in ("utf-8", "utf-9"):
        with pytest.raises(InvalidInputError, match="name its encoding"):
            list(read_rows(tmp_path / "a.csv", encoding))


def test_a_long_field_of_a_table_is_read_and_the_limit_put_back(tmp_path: Path) -> None:
    import csv

    others, before = csv.field_size_limit(100), 100
    (tmp_path / "a.csv").write_text(f"text\n{'w' * (before + 1)}\n")
    try:
        assert len(next(read_rows(tmp_path / "a.csv"))["text"]) == before + 1
        assert csv.field_size_limit() == before
    finally:
        csv.field_size_limit(others)


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match=r"pip install modwright\[text\]"):
        list(read_rows(path))
