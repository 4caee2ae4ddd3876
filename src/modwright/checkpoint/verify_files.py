"""Compares the safetensors files of an output with the model they were written from."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from modwright.checkpoint.shards import INDEX, StoredTensor, read_headers
from modwright.checkpoint.ties import state_apart, stored_names
from modwright.core.compat.transformers import keys_not_saved, names_in_files
from modwright.core.errors import VerificationError

__all__ = ["verify_files"]


def verify_files(model: transformers.PreTrainedModel, directory: Path) -> None:
    """Check that a directory holds each tensor of ``model`` once, and nothing else.

    Names, shapes, number of bytes, and a shard index that lists every shard. Values are not read.

    Raises:
        VerificationError: names the first tensor or file that is wrong.
    """
    stored = read_headers(directory)
    _check_index(directory, stored)
    expected = _expected(model)
    for names in expected:
        written = [name for name in names if name in stored]
        if not written:
            raise VerificationError(f"the output lacks the tensor {min(names)}")
        for name in written:
            if stored[name].shape != names[name]:
                raise VerificationError(
                    f"the output holds {name} as {stored[name].shape}, the model as {names[name]}"
                )
        if len(written) > 1:
            raise VerificationError(f"the output stores tied tensors twice: {', '.join(written)}")
    surplus = sorted(set(stored).difference(*expected))
    if surplus:
        raise VerificationError(f"the output holds {surplus[0]}, which the model does not have")


def _expected(model: transformers.PreTrainedModel) -> list[dict[str, tuple[int, ...]]]:
    """The tensors a checkpoint must hold: one entry each, with all its names if it is tied."""
    ignored = keys_not_saved(model)
    state = {name: t for name, t in state_apart(model).items() if name not in ignored}
    tied = stored_names(model)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        groups.setdefault(tied[name], {})[name] = tuple(tensor.shape)
    # Files keep the names of the original format, which for some families (experts) are others
    # than the model's; transformers' own rules, run without values, tell which.
    kept, reverted = names_in_files(model, state)
    if set(reverted) == kept:
        return list(groups.values())
    return [{name: tuple(tensor.shape)} for name, tensor in reverted.items()]


def _check_index(directory: Path, stored: dict[str, StoredTensor]) -> None:
    shards = {file.name for file in directory.glob("*.safetensors")}
    if not (directory / INDEX).exists():
        if len(shards) != 1:
            raise VerificationError(f"the output has {len(shards)} weight files and no index")
        return
    weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    unlisted = sorted(shards - set(weight_map.values()))
    if unlisted:
        raise VerificationError(f"the shard index does not list {unlisted[0]}")
    for name, tensor in stored.items():
        if weight_map.get(name) != tensor.file:
            raise VerificationError(f"the shard index does not say that {name} is in {tensor.file}")
