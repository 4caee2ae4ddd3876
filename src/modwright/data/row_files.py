"""Files whose lines or entries are rows: JSON, CSV and parquet, one mapping after the other."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modwright.core.errors import InvalidInputError, first_line, reason, unknown_name

__all__ = ["SUFFIXES", "is_row_file", "read_rows"]

Row = dict[str, Any]


def is_row_file(path: Path) -> bool:
    """Whether a file holds rows, by its suffix."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_rows(path: str | Path, encoding: str = "utf-8") -> Iterator[Row]:
    """The rows of a file, by names of columns, one at a time and in order.

    ``.jsonl`` and ``.ndjson`` hold an object in each line; ``.json`` a list of objects, or lines of
    them; ``.csv`` and ``.tsv`` begin with a line of names; ``.parquet`` says its own.

    Raises:
        InvalidInputError: another suffix, a file that cannot be read as its suffix says (with the
            line where one can be named), or no package that reads parquet.
    """
    path = Path(path)
    reader = SUFFIXES.get(path.suffix.lower())
    if reader is None:
        raise unknown_name("suffix of a file of rows", path.suffix, SUFFIXES)
    try:
        yield from reader(path, encoding)
    except (OSError, UnicodeError, LookupError, csv.Error, RecursionError) as error:
        told = f"{path} cannot be read: {reason(error)}"
        if isinstance(error, UnicodeError | LookupError):
            told += "; name its encoding, for example utf-8 or latin-1"
        raise InvalidInputError(told) from None


def _lines(path: Path, encoding: str) -> Iterator[Row]:
    with path.open(encoding=encoding) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _object(line, path, number)


def _object(line: str, path: Path, number: int) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        told = f"{path} cannot be read: line {number} is no JSON ({error})"
        raise InvalidInputError(told) from None
    return _row(found, path, f"line {number}")


def _row(found: Any, path: Path, where: str) -> Row:
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise InvalidInputError(f"{path} cannot be read: {where} is {kind}, not an object")
    return found


def _json(path: Path, encoding: str) -> Iterator[Row]:
    text = path.read_text(encoding=encoding)
    if not text.lstrip().startswith("["):
        yield from _lines(path, encoding)
        return
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{path} cannot be read: no JSON ({error})") from None
    for number, entry in enumerate(entries):
        yield _row(entry, path, f"entry {number}")


def _separated(separator: str) -> Callable[[Path, str], Iterator[Row]]:
    def read(path: Path, encoding: str) -> Iterator[Row]:
        before = csv.field_size_limit(2**31 - 1)  # a field is a whole text
        try:
            with path.open(encoding=encoding, newline="") as stream:
                rows = list(csv.DictReader(stream, delimiter=separator, strict=True))
        finally:
            csv.field_size_limit(before)
        if any(None in row or None in row.values() for row in rows):
            raise InvalidInputError(
                f"{path} cannot be read: a row has not as many fields as the first"
            )
        yield from rows

    return read


def _parquet(path: Path, encoding: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InvalidInputError(
            f"{str(path)!r} is read with `pyarrow`: pip install modwright[text]"
        ) from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise InvalidInputError(f"{path} cannot be read: {first_line(error)}") from None


SUFFIXES: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""What reads a file of rows, by its suffix in small letters."""
