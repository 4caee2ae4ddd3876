"""Carries the files beside the weights over to an output, byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from modwright.checkpoint.classes import code_file
from modwright.core.errors import CheckpointError
from modwright.core.reading import read_json

__all__ = ["auxiliary_files", "copy_auxiliary_files", "weight_files"]

_WEIGHTS: tuple[str, ...] = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".index.json")
_WEIGHTS += (".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".tflite")
_README = "README.md"


def weight_files(place: Path) -> tuple[Path, ...]:
    """The files that a model's weights are read from: the file itself, or those of a directory.

    Of a directory that holds copies in several formats, safetensors are read.
    """
    if place.is_file():
        return (place,)
    return tuple(sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin")))


def auxiliary_files(directory: Path) -> tuple[str, ...]:
    """The files of a checkpoint directory that travel with any output made from it.

    All but weights, the top ``config.json``, the code of a standalone export, which is made anew,
    and hidden files. A subfolder that is a checkpoint of its own (a trainer's ``checkpoint-500``,
    say) stays behind, unless ``modules.json`` names it as a module of a sentence encoder: then it
    travels whole, weights included.

    Returns:
        Paths relative to the directory, with forward slashes, sorted.
    """
    modules, own = _module_folders(directory), ("config.json", code_file(directory))
    found: list[str] = []
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder).relative_to(directory)
        whole = any(part in modules for part in (here, *here.parents))
        weights = {name for name in names if name.endswith(_WEIGHTS)}
        if here.parts and not whole and weights and "config.json" in names:
            subfolders.clear()
            continue
        subfolders[:] = [n for n in subfolders if not n.startswith(".") and n != "__pycache__"]
        found += [
            (here / name).as_posix()
            for name in names
            if not name.startswith(".")
            and (whole or name not in weights)
            and (here.parts or name not in own)
            and Path(folder, name).is_file()
        ]
    return tuple(sorted(found))


def copy_auxiliary_files(
    directory: Path, files: Collection[str], out: Path, *, written: Collection[str] = ()
) -> tuple[str, ...]:
    """Copy ``files`` of ``directory`` into ``out``, byte for byte; returns the names written.

    Args:
        directory: where the files are.
        files: paths relative to it.
        out: an existing directory; a file of the same name is replaced.
        written: names the caller writes himself, which are left to him. The source's README then
            becomes ``SOURCE_README.md``.

    Raises:
        CheckpointError: a file has vanished from the source or cannot be written.
    """
    done: list[str] = []
    for name in files:
        target, number = name, 2
        if name == _README and name in written:
            target = "SOURCE_README.md"
            while target in {*files, *written}:
                target, number = f"SOURCE_README_{number}.md", number + 1
        elif name in written:
            continue
        try:
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, out / target)
        except OSError as error:
            raise CheckpointError(
                f"cannot carry {name!r} over to the output: {error.strerror or error}"
            ) from error
        done.append(target)
    return tuple(done)


def _module_folders(directory: Path) -> set[Path]:
    """Folders that ``modules.json`` of a sentence encoder names, without the top one."""
    try:
        paths = {Path(module["path"]) for module in read_json(directory / "modules.json")}
    except (CheckpointError, TypeError, KeyError):
        return set()
    return {path for path in paths if path.parts and not path.is_absolute()}
