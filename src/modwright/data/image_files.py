"""Image files as they are meant to be seen, and the classes and splits of those in a folder."""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from modwright.core.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageFiles", "divided", "find_images", "hidden", "is_image", "listed_names"]
__all__ += ["permutation", "read_image", "split_names"]

# What Pillow finds by its first bytes but does not draw by itself.
_NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Formats whose numbers go up to 65,535 where Pillow reads them as 32-bit integers.
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}
# Formats whose further frames are previews, depth or the same image for the other eye.
_ONE_IMAGE_FORMATS = {"MPO"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_TRAIN = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "eval", "test", "testing")  # the first one is taken
_SYSTEM = {"__macosx", "$recycle.bin", "system volume information", "@eadir"}
_SHOWN = 3


def is_image(path: str | Path) -> bool:
    """Whether a file is an image, by its first bytes; a damaged one is, by its suffix."""
    from PIL import Image

    path = Path(path)
    try:
        with Image.open(path) as opened:
            return opened.format not in _NOT_DRAWN
    except Image.DecompressionBombError:
        return True
    except _DAMAGED:
        known = Image.registered_extensions().get(path.suffix.lower())
        return known is not None and known not in _NOT_DRAWN


def read_image(path: str | Path, *, single: bool = False) -> Image.Image:
    """An image file, turned as its EXIF orientation says, in 8-bit red, green and blue.

    Gray, palette, CMYK and the like become RGB. 16-bit grays are divided by 257; floating-point
    grays from 0 to 1 are multiplied by 255. What is transparent is laid over white. Of several
    frames the first is taken. ``single`` refuses a file whose transparency or further frames would
    be lost.

    Raises:
        CheckpointError: no such file, or none that Pillow can read; names it.
        InvalidInputError: numbers whose range the file does not say, more pixels than Pillow's
            limit, or, with ``single``, transparency or several frames.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    try:
        with Image.open(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            if single and frames > 1 and opened.format not in _ONE_IMAGE_FORMATS:
                raise InvalidInputError(f"{path} has several frames; save the one that is wanted")
            opened.load()  # a TIFF file is turned here
            upright = ImageOps.exif_transpose(opened)
            return _as_rgb(upright, opened.format, path, single)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InvalidInputError(
            f"{path} has more than {most:,} pixels; make it smaller first"
        ) from None
    except _DAMAGED:
        raise CheckpointError(f"{path} is no image that can be read") from None


def _as_rgb(image: Image.Image, kind: str | None, path: Path, single: bool) -> Image.Image:
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(image, kind, path)).convert("RGB")
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        try:
            return image.convert("RGB")
        except ValueError:
            raise InvalidInputError(f"{path} is in {image.mode}; save it as RGB") from None
    # A premultiplied mode of two bands reaches RGBA on one more step.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if single and image.getchannel("A").getextrema() != (255, 255):
        raise InvalidInputError(f"{path} is partly transparent; save it without an alpha channel")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _eight_bit(image: Image.Image, kind: str | None, path: Path) -> np.ndarray:
    """(H, W) gray of 16 bits or of floating point, as 8 bits."""
    numbers = np.asarray(image)
    low, high = float(numbers.min()), float(numbers.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN, too
            said = f"{low:g} to {high:g}" if math.isfinite(low + high) else "NaN or infinity"
            raise InvalidInputError(f"{path} holds floating-point pixels of {said}; 0 to 1 is read")
        return np.round(numbers * 255.0).astype(np.uint8)
    if image.mode == "I" and kind not in _SIXTEEN_BIT_FORMATS:
        raise InvalidInputError(
            f"{path} holds 32-bit pixels ({low:g} to {high:g}), whose white the file does not say; "
            "save it with 8 or 16 bits"
        )
    return np.round(numbers.astype(np.float64) / 257).astype(np.uint8)


@dataclass(frozen=True)
class ImageFiles:
    """Files in two splits: a name, and for each (file, index of its class).

    ``notes`` are sentences on what was left out, and how the splits were made.
    """

    classes: tuple[str, ...]
    splits: tuple[tuple[str, list[tuple[Path, int]]], ...]
    notes: tuple[str, ...]


def find_images(folder: Path, test: float, seed: int) -> ImageFiles:
    """The images of a folder that has one folder per class, or such a folder for each split.

    Folders ``train`` and ``val`` (or ``validation``, ``test``) are splits; without them every class
    gives the share ``test`` of its images, at least one where it has two, of a permutation of all;
    1 holds all of them out.
    Hidden folders and those of the system are no classes.

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
            f"{folder} has {listed_names(others)}, but no folder {_TRAIN[0]} to learn from"
        )
    if learned is None or not (others or len(found) == 1):
        return divided(folder, _classes(folder, notes), test, seed, notes)
    apart = sorted(set(found.values()) - {learned, *others[:1]})
    if apart:
        notes.append(
            f"{folder}: {listed_names(apart)} not used: {learned} is the split to learn from"
        )
    classes, files = _classes(folder / learned, notes)
    if not others:
        return divided(folder / learned, (classes, files), test, seed, notes)
    held_out, measured = _classes(folder / others[0], notes, least=1)
    strange = sorted(set(held_out) - set(classes))
    if strange:
        raise InvalidInputError(
            f"{folder}: {others[0]} has the class {strange[0]!r}, which {learned} has not; "
            f"classes: {', '.join(classes)}"
        )
    positions = [classes.index(name) for name in held_out]
    moved = [(path, positions[index]) for path, index in measured]
    shuffled = [files[i] for i in permutation(len(files), seed)]
    return ImageFiles(
        tuple(classes),
        ((learned, shuffled), (others[0], moved)),
        (*notes, f"{folder}: learns from {learned}, is measured on {others[0]}"),
    )


def split_names(folder: Path) -> tuple[str | None, str | None]:
    """The folders to learn from and to measure on, of those that are there, as they are written."""
    found = {path.name.lower(): path.name for path in sorted(folder.iterdir()) if path.is_dir()}
    learned, held_out = (
        next((found[name] for name in names if name in found), None)
        for names in (_TRAIN, _HELD_OUT)
    )
    return learned, held_out


def _folders(folder: Path, notes: list[str]) -> list[str]:
    """Names of the folders in a folder that can be classes or splits, sorted."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    left = [name for name in names if hidden(name)]
    if left:
        notes.append(f"{folder}: left out {listed_names(left)}, which hold no images of a class")
    return [name for name in names if name not in left]


def hidden(name: str) -> bool:
    """Whether a file or folder is the system's, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM


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
        notes.append(
            f"{folder}: {len(loose)} images in no folder of a class ({listed_names(loose)})"
        )
    files: list[tuple[Path, int]] = []
    left: list[str] = []
    for index, name in enumerate(classes):
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            inner = path.relative_to(folder)
            if not any(map(hidden, inner.parts[1:])) and is_image(path):
                files.append((path, index))
            else:
                left.append(str(inner))
    told = ""
    if left:
        kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in left)
        by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        told = f"{len(left)} files that are no readable images left out ({by_kind})"
        told += f": {listed_names(left)}"
        notes.append(f"{folder}: {told}")
    empty = sorted(set(range(len(classes))) - {index for _, index in files})
    if len(empty) > len(classes) - least:
        more = f"; {told}" if told else ""
        raise InvalidInputError(
            f"{folder}: the folder {classes[empty[0]]!r} holds no readable image{more}"
        )
    return classes, files


def divided(
    folder: Path,
    found: tuple[list[str], list[tuple[Path, int]]],
    test: float,
    seed: int,
    notes: list[str],
) -> ImageFiles:
    """Two splits in which every class has its share."""
    classes, files = found
    counts = Counter(index for _, index in files)
    wanted = {i: min(max(round(n * test), 1), n - (test < 1)) for i, n in counts.items()}
    if not 0 < test <= 1 or not any(wanted.values()):
        raise InvalidInputError(f"{folder}: {len(files)} images cannot be split at {test:g}")
    single = [classes[index] for index, count in wanted.items() if not count]
    if single:
        notes.append(f"{folder}: one image only, so none to measure on: {listed_names(single)}")
    learned: list[tuple[Path, int]] = []
    measured: list[tuple[Path, int]] = []
    for i in permutation(len(files), seed) if test < 1 else range(len(files)):
        path, index = files[i]
        wanted[index] -= 1
        (measured if wanted[index] >= 0 else learned).append((path, index))
    splits = ((f"train, seed {seed}", learned), (f"test, seed {seed}", measured))
    return ImageFiles(tuple(classes), splits, tuple(notes))


def permutation(count: int, seed: int) -> list[int]:
    """All numbers below a count, in an order that a seed gives."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def listed_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
