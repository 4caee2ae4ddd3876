"""Carries the files beside the weights over to an output, byte for byte.

Tokenizer, chat template, generation config, pooling folders, custom code: what an edit does not
concern must be in the output as it was in the source.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from modwright.core.errors import CheckpointError
from modwright.core.reading import read_json

__all__ = ["auxiliary_files", "copy_auxiliary_files", "weight_files"]

_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".gguf",
    ".pt",
    ".pth",
    ".ckpt",
    ".index.json",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".ot",
    ".tflite",
)
_README = "README.md"


def weight_files(place: Path) -> tuple[Path, ...]:
    """The files that a model's weights are read from: the file itself, or those of a directory.

    Of a directory that holds copies in several formats, safetensors are read.
    """
    if place.is_file():
        return (place,)
    for suffix in (".safetensors", ".bin"):
        found = tuple(sorted(place.glob(f"*{suffix}")))
        if found:
            return found
    return ()


def auxiliary_files(directory: Path) -> tuple[str, ...]:
    """The files of a checkpoint directory that travel with any output made from it.

    All but weights, the top ``config.json``, the code of a standalone export, which is made anew,
    and hidden files. A subfolder that is a checkpoint of its own (a trainer's ``checkpoint-500``,
    say) stays behind, unless ``modules.json`` names it as a module of a sentence encoder: then it
    travels whole, weights included.

    Returns:
        Paths relative to the directory, with forward slashes, sorted.
    """
    from modwright.checkpoint.export.reading import code_file

    modules, generated = _module_folders(directory), code_file(directory)
    found: list[str] = []
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder).relative_to(directory)
        whole = any(part in modules for part in (here, *here.parents))
        if here.parts and not whole and _is_checkpoint(names):
            subfolders.clear()
            continue
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and name != "__pycache__"
        ]
        for name in names:
            if name.startswith(".") or (name.endswith(_WEIGHTS) and not whole):
                continue
            if name in ("config.json", generated) and not here.parts:
                continue
            if (Path(folder) / name).is_file():
                found.append((here / name).as_posix())
    return tuple(sorted(found))


def copy_auxiliary_files(
    directory: Path, files: Collection[str], out: Path, *, written: Collection[str] = ()
) -> tuple[str, ...]:
    """Copy ``files`` of ``directory`` into ``out``, byte for byte.

    Args:
        directory: where the files are.
        files: paths relative to it.
        out: an existing directory; a file of the same name is replaced.
        written: names the caller writes himself, which are left to him. The source's README then
            becomes ``SOURCE_README.md``.

    Returns:
        The names written into ``out``.

    Raises:
        CheckpointError: a file has vanished from the source or cannot be written.
    """
    done: list[str] = []
    for name in files:
        target = name
        if name == _README and name in written:
            target = _free_name("SOURCE_README", ".md", {*files, *written})
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


def _free_name(stem: str, suffix: str, taken: Collection[str]) -> str:
    name, number = f"{stem}{suffix}", 2
    while name in taken:
        name, number = f"{stem}_{number}{suffix}", number + 1
    return name


def _is_checkpoint(names: Collection[str]) -> bool:
    return "config.json" in names and any(name.endswith(_WEIGHTS) for name in names)


def _module_folders(directory: Path) -> set[Path]:
    """Folders that ``modules.json`` of a sentence encoder names, without the top one."""
    try:
        modules = read_json(directory / "modules.json")
        paths = {Path(module["path"]) for module in modules}
    except (CheckpointError, TypeError, KeyError):
        return set()
    return {path for path in paths if path.parts and not path.is_absolute()}
