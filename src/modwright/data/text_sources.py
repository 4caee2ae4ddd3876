"""Where text comes from: texts by name, text files, folders of them, and files of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.data.registry import datasets_of, make_source
from modwright.data.row_files import SUFFIXES, is_row_file, read_rows

__all__ = ["PATHS", "Text", "TextData", "TextSource", "load_text", "read_text", "text_files"]
__all__ += ["text_names", "text_of_path"]

_DATASETS = "datasets:"
_ENDINGS = ("", ".txt", ".md")
# What `datasets` builds of a file, by its suffix.
_BUILDERS = dict.fromkeys((".json", ".jsonl", ".ndjson"), "json")
_BUILDERS |= {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}

PATHS = (
    "the path of a text file, of a directory of text files or of a file of rows "
    f"({', '.join(SUFFIXES)}), or {_DATASETS}NAME"
)
"""What can stand for the name of a text, for messages."""


@dataclass(frozen=True)
class TextData:
    """Where text comes from.

    Attributes:
        data: a name (see `text_names`), a text file, a directory whose ``*.txt`` and ``*.md`` files
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


@dataclass(frozen=True)
class Text:
    """A text: its documents, and what they were.

    Attributes:
        documents: in order; several are joined by a blank line.
        unit: what one of them is: "file", "row", "document"; None for one that is the whole text.
        split: of a dataset; None of plain text.
        column: that held the text; None of plain text.
        encoding: of the files; None where there are none.

    Example:
        >>> Text(("One.", "Two."), unit="document").facts()["documents"]
        '2 documents joined by a blank line'
    """

    documents: tuple[str, ...]
    unit: str | None = None
    split: str | None = None
    column: str | None = None
    encoding: str | None = None

    @property
    def joined(self) -> str:
        """The whole text."""
        return "\n\n".join(self.documents)

    def facts(self) -> dict[str, Any]:
        """What a recipe says of it."""
        several = f"{len(self.documents)} {self.unit}s joined by a blank line"
        whole = "one file as it is" if self.encoding else "one text as it is"
        documents = several if self.unit is not None else whole
        facts = {"split": self.split, "column": self.column, "encoding": self.encoding}
        return {**facts, "documents": documents}

    @classmethod
    def of(cls, made: Any, name: str) -> Text:
        """What a dataset of the kind "text" made: a text, a string, or documents in a list."""
        if isinstance(made, cls):
            return made
        if isinstance(made, str):
            return cls((made,))
        if isinstance(made, Sequence) and all(isinstance(one, str) for one in made):
            return cls(tuple(made), "document")
        kind = type(made).__name__
        raise InvalidInputError(f"text {name!r} gave {kind}; a text is a string or a list of them")


def text_names() -> tuple[str, ...]:
    """Texts by name, as ``lee``, of a Python package or of the system's; see :func:`datasets_of`.

    Example:
        >>> "lee" in text_names()
        True
    """
    return tuple(datasets_of("text").names())


TextSource = TextData | Text | str | Mapping[str, Any]
"""Where a text comes from; a string is a name or a path, a mapping ``{text: NAME, ...}``."""


def load_text(data: TextSource) -> str:
    """The whole text; a single file as it is, documents joined by a blank line.

    Raises:
        InvalidInputError: unknown name, missing package, unreadable file, unknown column, no text.
    """
    return read_text(data)[0]


def read_text(data: TextSource, name: str = "text") -> tuple[str, dict[str, Any]]:
    """The text and what a recipe says of it; a text that is there already is called ``name``."""
    if isinstance(data, Mapping):
        name, made = make_source("text", data)
        text = Text.of(made, name)
    elif isinstance(data, Text):
        text = data
    else:
        data = TextData(data) if isinstance(data, str) else data
        name, text = data.data, _text_of(data)
    joined = text.joined
    if not joined.strip():
        raise InvalidInputError(f"text {name!r} is empty; give one that holds words")
    return joined, {"data": name, **text.facts()}


def _text_of(data: TextData) -> Text:
    if data.data not in datasets_of("text"):
        return text_of_path(data.data, split=data.split, field=data.column, encoding=data.encoding)
    _refuse_options(data.data, data.split, data.column)
    return Text.of(datasets_of("text")[data.data].make(), data.data)


def text_of_path(
    path: str, *, split: str = "train", field: str = "text", encoding: str = "utf-8"
) -> Text:
    """The text of a file, a folder, a file of rows, or ``datasets:NAME``.

    Args:
        path: as :class:`TextData` has it.
        split: of a dataset.
        field: the column of a dataset or of a file of rows that holds the text.
        encoding: of the files.

    Raises:
        InvalidInputError: nothing is there, or it cannot be read.
    """
    place = Path(path).expanduser()
    if path.startswith(_DATASETS) or is_row_file(place):
        named = path.startswith(_DATASETS)
        rows = _dataset_rows(path, split, encoding) if named else _file_rows(place, split, encoding)
        documents = tuple(_field(row, at, path, field) for at, row in enumerate(rows))
        return Text(documents, "row", split, field)
    _refuse_options(path, split, field)
    if not path or not place.exists():
        raise InvalidInputError(f"{unknown_name('text', path, text_names())}; or {PATHS}")
    return text_files(place, encoding)


def _refuse_options(name: str, split: str, column: str) -> None:
    """Plain text has neither splits nor columns."""
    for word, given, default in (
        ("split", split, TextData.split),
        ("column", column, TextData.column),
    ):
        if given != default:
            raise InvalidInputError(
                f"{word} {given!r} has no meaning for the plain text {name!r}; leave it at "
                f"{default!r} or read a file of rows or {_DATASETS}NAME"
            )


def text_files(path: Path, encoding: str = "utf-8") -> Text:
    """A text file, or the text files of a folder."""
    files = _documents(path)
    unit = "file" if path.is_dir() else None
    return Text(tuple(_decode(file, encoding) for file in files), unit, encoding=encoding)


def _documents(path: Path) -> list[Path]:
    """The text files of a directory, or the file itself."""
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    files = [file for file in files if file.suffix in _ENDINGS and file.name[0] != "."]
    if not files:
        raise InvalidInputError(
            f"{path} holds no text: expected *.txt or *.md files or files without a suffix"
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


def _file_rows(path: Path, split: str, encoding: str) -> Any:
    if split != TextData.split:
        raise unknown_name(f"split of {path}", split, (TextData.split,))
    return read_rows(path, encoding)


def _dataset_rows(data: str, split: str, encoding: str) -> list[dict[str, Any]]:
    """Every row of what `datasets` reads, in order."""
    try:
        import datasets
    except ImportError:
        raise InvalidInputError(f"{data!r} needs `datasets`: pip install modwright[text]") from None
    name, _, config = data.removeprefix(_DATASETS).partition("#")
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix.lower() not in _BUILDERS:
                raise unknown_name("dataset file suffix", path.suffix, _BUILDERS)
            tables = _streamed(datasets, path, encoding)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            tables = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        else:
            tables = {split: datasets.load_dataset(name, config or None, split=split)}
        if split not in tables:
            raise unknown_name(f"split of {data}", split, tables)
        return list(tables[split])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"{data!r} (split {split!r}) cannot be read: {said}; expected a directory "
            "written by save_to_disk, a json, csv, parquet or txt file, or a name datasets knows"
        ) from error


def _streamed(datasets: Any, path: Path, encoding: str) -> Any:
    """Streaming reads the file itself; the other way would leave a second copy in a cache."""
    builder = _BUILDERS[path.suffix.lower()]
    options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    if encoding != TextData.encoding and builder != "parquet":
        options["encoding"] = encoding
    return datasets.load_dataset(builder, data_files=str(path), streaming=True, **options)


def _field(row: Mapping[str, Any], number: int, data: str, field: str) -> str:
    if field not in row:
        raise unknown_name(f"column of {data}", field, row)
    value = row[field]
    if not isinstance(value, str):
        said = f"row {number} of column {field!r} of {data}"
        raise InvalidInputError(f"{said} is {type(value).__name__}; it must be text")
    return value
