"""Folders whose images are listed with their labels, as imagefolder has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.data.image_files import (
    ImageFiles,
    divided,
    hidden,
    is_image,
    listed_names,
    permutation,
    split_names,
)
from modwright.data.row_files import read_rows

__all__ = ["METADATA", "find_listed_images", "has_metadata"]

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The files that list images; the first that is there is read."""

_FILE = "file_name"
Labeled = list[tuple[Path, str]]


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def has_metadata(folder: Path) -> bool:
    """Whether a folder, or one of its splits, lists its images."""
    learned, held_out = split_names(folder)
    return any(_metadata(folder / name) for name in (".", learned, held_out) if name is not None)


def find_listed_images(folder: Path, field: str, held_out: float, seed: int) -> ImageFiles:
    """The images that ``metadata.csv`` lists by ``file_name``, with a label each.

    It lies in the folder, where names may begin with that of a split, or in each split. Without
    splits every class gives the share ``held_out`` of a permutation.

    Raises:
        InvalidInputError: no such column, a file that is not there or lies elsewhere, labels that
            one split alone has, or too few of them.
    """
    notes: list[str] = []
    learned, measured = split_names(folder)
    root = _metadata(folder)
    if root is not None:
        rows = _listed(folder, root, field)
        first = {path.relative_to(folder).parts[0] for path, _ in rows}
        parts = {
            name: [r for r in rows if r[0].relative_to(folder).parts[0] == name] for name in first
        }
        if (
            learned is None
            or measured is None
            or not first <= {learned, measured}
            or len(first) < 2
        ):
            parts = {"": rows}
    else:
        parts = {}
        for name in (learned, measured):
            listing = None if name is None else _metadata(folder / name)
            if name is not None and listing is None:
                raise InvalidInputError(f"{folder / name} has no {METADATA[0]}, and others have")
            if name is not None and listing is not None:
                parts[name] = _listed(folder / name, listing, field)
    _note_unlisted(folder, {path for rows in parts.values() for path, _ in rows}, notes)
    classes = _classes(label for rows in parts.values() for _, label in rows)
    if len(classes) < 2:
        raise InvalidInputError(
            f"{folder}: the labels are {listed_names(classes)}; classes are two or more"
        )
    indexed = {
        name: [(path, classes.index(label)) for path, label in rows] for name, rows in parts.items()
    }
    if len(parts) == 1:
        name, every = next(iter(indexed.items()))
        return divided(folder / name, (classes, every), held_out, seed, notes)
    assert learned is not None and measured is not None
    strange = {label for _, label in parts[measured]} - {label for _, label in parts[learned]}
    if strange:
        raise InvalidInputError(
            f"{folder}: {measured} has the class {min(strange)!r}, which {learned} has not"
        )
    shuffled = [indexed[learned][i] for i in permutation(len(indexed[learned]), seed)]
    notes.append(f"{folder}: learns from {learned}, is measured on {measured}")
    splits = ((learned, shuffled), (measured, indexed[measured]))
    return ImageFiles(tuple(classes), splits, tuple(notes))


def _listed(folder: Path, listing: Path, field: str) -> Labeled:
    found: Labeled = []
    for number, row in enumerate(read_rows(listing)):
        for column in (_FILE, field):
            if column not in row:
                raise unknown_name(f"column of {listing}", column, row)
        inner = PurePosixPath(str(row[_FILE]))
        if inner.is_absolute() or ".." in inner.parts or not inner.parts:
            raise InvalidInputError(f"{listing}: row {number} names {str(inner)!r}, outside of it")
        path = folder / inner
        if not path.is_file():
            raise InvalidInputError(f"{listing}: row {number} names {str(inner)!r}; no such file")
        label = row[field]
        if label is None or str(label).strip() == "":
            raise InvalidInputError(f"{listing}: row {number} has no {field}")
        found.append((path, str(label)))
    if not found:
        raise InvalidInputError(f"{listing} lists no image")
    return found


def _classes(labels: Iterable[str]) -> list[str]:
    """Whole numbers in their order, other names by the alphabet."""
    names = set(labels)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _note_unlisted(folder: Path, listed: set[Path], notes: list[str]) -> None:
    left = [
        path
        for path in sorted(folder.rglob("*"))
        if path not in listed
        and path.is_file()
        and path.name not in METADATA
        and not any(map(hidden, path.relative_to(folder).parts))
        and is_image(path)
    ]
    if left:
        told = listed_names([str(path.relative_to(folder)) for path in left])
        notes.append(f"{folder}: {len(left)} images are not listed and are left out ({told})")
