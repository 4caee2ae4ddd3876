"""Reads the headers of a directory's safetensors files: names, shapes and types, no values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from modwright.core.errors import CheckpointError
from modwright.core.reading import read_json, refuse_no_weights

__all__ = ["StoredTensor", "read_headers", "weight_files"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "C64": 64}
_ITEM_BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint as its header tells it.

    Attributes:
        shape: its dimensions.
        dtype: as safetensors spells it, ``BF16`` say.
        file: name of the file it is in.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.numel * _ITEM_BITS.get(self.dtype, 8) // 8


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files a checkpoint directory consists of, those of the index if sharded.

    Raises:
        CheckpointError: there are none, only pickled ones, or a shard is missing.
    """
    if (directory / SINGLE).is_file():
        return (directory / SINGLE,)
    if not (directory / INDEX).is_file():
        raise CheckpointError(_no_weights(directory))
    weight_map = _weight_map(directory)
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (directory / name).is_file():
            lost = sum(file == name for file in weight_map.values())
            raise CheckpointError(
                f"{directory}: {INDEX} names {name}, which is missing ({lost} of "
                f"{len(weight_map)} tensors); copy or download it again"
            )
    return tuple(directory / name for name in names)


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory by name.

    Raises:
        CheckpointError: no safetensors weights, a shard is missing, unreadable or cut short, or
            the index names a tensor that its file does not hold.
    """
    tensors: dict[str, StoredTensor] = {}
    files = weight_files(directory)
    for file in files:
        tensors |= _file_header(file)
    if (directory / SINGLE).is_file():
        return tensors
    for name, shard in _weight_map(directory).items():
        if name not in tensors:
            raise CheckpointError(f"{directory}: {INDEX} says {name} is in {shard}; it is not")
    return tensors


def _file_header(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    refuse_no_weights(file)
    try:
        with safe_open(str(file), framework="numpy") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), file.name)
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}); copy or download it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


def _weight_map(directory: Path) -> dict[str, str]:
    try:
        index = read_json(directory / INDEX)
        return {str(name): str(file) for name, file in index["weight_map"].items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{directory / INDEX} is not a shard index: {error}") from error


def _no_weights(directory: Path) -> str:
    names = [entry.name for entry in directory.iterdir()]
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        return (
            f"{directory} holds its weights only as pickles ({pickled[0]}), which can run code "
            "when read; safetensors is wanted: convert them with transformers' save_pretrained"
        )
    other = sorted(name for name in names if name.endswith(".safetensors"))
    found = f"; it holds {', '.join(other[:3])}" if other else ""
    return f"{directory} has no weights: {SINGLE} or {INDEX} is wanted{found}"
