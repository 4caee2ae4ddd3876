"""Which image files of a folder belong to which class and to which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.tasks.image_files import is_image

__all__ = ["ImageFiles", "find_images"]

_TRAIN = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "eval", "test", "testing")  # the first one is taken
_SYSTEM = {"__macosx", "$recycle.bin", "system volume information", "@eadir"}
_SHOWN = 3


@dataclass(frozen=True)
class ImageFiles:
    """Files with their classes, in two splits.

    Attributes:
        classes: names, in the order of the indices.
        splits: two names, and for each the (file, index of its class).
        notes: sentences on what was left out, and how the splits were made.
    """

    classes: tuple[str, ...]
    splits: tuple[tuple[str, list[tuple[Path, int]]], ...]
    notes: tuple[str, ...]


def find_images(folder: Path, test: float, seed: int) -> ImageFiles:
    """The images of a folder that has one folder per class, or such a folder for each split.

    Folders ``train`` and ``val`` (or ``validation``, ``test``) are splits; without them every class
    gives the share ``test`` of its images, at least one where it has two, of a permutation of all.
    Hidden folders and those of the system are no classes.

    Args:
        folder: with the classes, or the splits.
        test: share that is held out where the folder has no splits.
        seed: of the permutation.

    Raises:
        CheckpointError: there is no such folder.
        InvalidInputError: fewer than two classes, too few images for two splits, or a class that
            one split alone has.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    notes: list[str] = []
    found = {name.lower(): name for name in _folders(folder, notes)}
    learned = next((found[name] for name in _TRAIN if name in found), None)
    others = [found[name] for name in _HELD_OUT if name in found]
    if others and learned is None and len(others) == len(found):
        raise InvalidInputError(
            f"{folder} has {_named(others)}, but no folder {_TRAIN[0]} to learn from"
        )
    if learned is None or not (others or len(found) == 1):
        classes, files = _classes(folder, notes)
        return _divided(folder, classes, files, test, seed, notes)
    apart = sorted(set(found.values()) - {learned, *others[:1]})
    if apart:
        notes.append(f"{folder}: {_named(apart)} not used: {learned} is the split to learn from")
    classes, files = _classes(folder / learned, notes)
    if not others:
        return _divided(folder / learned, classes, files, test, seed, notes)
    held_out, measured = _classes(folder / others[0], notes, least=1)
    strange = sorted(set(held_out) - set(classes))
    if strange:
        raise InvalidInputError(
            f"{folder}: {others[0]} has the class {strange[0]!r}, which {learned} has not; "
            f"classes: {', '.join(classes)}"
        )
    positions = [classes.index(name) for name in held_out]
    moved = [(path, positions[index]) for path, index in measured]
    order = _permutation(len(files), seed)
    return ImageFiles(
        tuple(classes),
        ((learned, [files[i] for i in order]), (others[0], moved)),
        (*notes, f"{folder}: learns from {learned}, is measured on {others[0]}"),
    )


def _folders(folder: Path, notes: list[str]) -> list[str]:
    """Names of the folders in a folder that can be classes or splits, sorted."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    left = [name for name in names if name.startswith(".") or name.lower() in _SYSTEM]
    if left:
        notes.append(f"{folder}: left out {_named(left)}, which hold no images of a class")
    return [name for name in names if name not in left]


def _classes(
    folder: Path, notes: list[str], least: int = 2
) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the classes, and the images with the index of theirs."""
    classes = _folders(folder, notes)
    if len(classes) < least:
        raise InvalidInputError(
            f"{folder} has {len(classes)} folders of images: classes are {least} or more"
        )
    loose = [p.name for p in sorted(folder.iterdir()) if p.is_file() and is_image(p)]
    if loose:
        notes.append(f"{folder}: {len(loose)} images in no folder of a class ({_named(loose)})")
    files: list[tuple[Path, int]] = []
    left: list[str] = []
    for index, name in enumerate(classes):
        inside = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        for path in inside:
            parts = path.relative_to(folder).parts[1:]
            if any(part.startswith(".") or part.lower() in _SYSTEM for part in parts):
                left.append(str(path.relative_to(folder)))
            elif is_image(path):
                files.append((path, index))
            else:
                left.append(str(path.relative_to(folder)))
    told = ""
    if left:
        kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in left)
        by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        told = f"{len(left)} files that are no readable images left out ({by_kind}): {_named(left)}"
        notes.append(f"{folder}: {told}")
    empty = sorted(set(range(len(classes))) - {index for _, index in files})
    if len(empty) > len(classes) - least:
        more = f"; {told}" if told else ""
        raise InvalidInputError(
            f"{folder}: the folder {classes[empty[0]]!r} holds no readable image{more}"
        )
    return classes, files


def _divided(
    folder: Path,
    classes: Sequence[str],
    files: Sequence[tuple[Path, int]],
    test: float,
    seed: int,
    notes: list[str],
) -> ImageFiles:
    """Two splits in which every class has its share."""
    counts = Counter(index for _, index in files)
    wanted = {i: min(max(round(n * test), 1), n - 1) for i, n in counts.items()}
    if not 0 < test < 1 or not any(wanted.values()):
        raise InvalidInputError(f"{folder}: {len(files)} images cannot be split at {test:g}")
    single = [classes[index] for index, count in wanted.items() if not count]
    if single:
        notes.append(f"{folder}: one image only, so none to measure on: {_named(single)}")
    learned: list[tuple[Path, int]] = []
    measured: list[tuple[Path, int]] = []
    for i in _permutation(len(files), seed):
        path, index = files[i]
        wanted[index] -= 1
        (measured if wanted[index] >= 0 else learned).append((path, index))
    splits = ((f"train, seed {seed}", learned), (f"test, seed {seed}", measured))
    return ImageFiles(tuple(classes), splits, tuple(notes))


def _permutation(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
