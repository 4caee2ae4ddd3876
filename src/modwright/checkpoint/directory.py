"""Loads the model of a checkpoint directory: safetensors weights beside a ``config.json``.

Weights that keep their type are mapped from the file, so they take no memory of their own until
they are written to; other types are converted tensor by tensor.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open

from modwright.checkpoint.classes import edited_config, is_standalone, model_class, remote_class
from modwright.checkpoint.kept_precision import describe_kept, kept_tensors
from modwright.checkpoint.memory import require_memory
from modwright.checkpoint.plausible import require_counts, require_fit
from modwright.checkpoint.silence import silence_transformers
from modwright.core.compat.transformers import keys_without_a_type
from modwright.core.errors import CheckpointError, ModwrightError, first_line
from modwright.core.modes import set_eval
from modwright.core.reading import read_json, refuse_no_weights

__all__ = [
    "INDEX",
    "Loaded",
    "StoredTensor",
    "check_loading",
    "load_checked",
    "load_directory",
    "placement",
    "read_headers",
    "stored_type",
]

# As safetensors spells the types that edits compute with.
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "C64": 64}
_ITEM_BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its header tells it; its type as safetensors spells it, and its file's name."""

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * _ITEM_BITS.get(self.dtype, 8) // 8


class Loaded(NamedTuple):
    """A model in evaluation mode, the stored tensors it has no place for, and what to say of it."""

    model: transformers.PreTrainedModel
    unexpected_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_directory(
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device | None,
    head: str | None,
    trust_remote_code: bool,
) -> Loaded:
    """Build the model of ``directory`` and fill it from its safetensors files, sharded or not.

    Args:
        directory: holds ``config.json`` and the weights.
        dtype: None keeps the one that the weights are stored in, whatever the config says; the
            widest where there are several.
        device: where the weights go; None is the CPU.
        head: another class than the saved one, see `classes.HEADS`.
        trust_remote_code: allow code that the directory brings.

    Raises:
        CheckpointError: something is missing, damaged, quantized or does not fit.
    """
    fields = _read_config_json(directory)
    stored = read_headers(directory)
    require_counts(fields, (tensor.shape for tensor in stored.values()), str(directory))
    config = _config(directory, fields, trust_remote_code)
    notes = _with_default_outputs(config)
    own = remote_class(config, head) if trust_remote_code else None
    cls: Any = own or model_class(config, head)
    values = sum(tensor.numel for tensor in stored.values())
    hollow = None if own is not None else require_fit(cls, config, values, str(directory))
    kept = kept_tensors(hollow, stored)
    deciding = (tensor.dtype for name, tensor in stored.items() if name not in kept)
    kinds = sorted({kind for kind in deciding if kind in _PLAIN})
    asked = dtype
    if dtype is None:
        dtype = stored_type(stored, hollow or cls)
        if len(kinds) > 1:
            taken = str(dtype).removeprefix("torch.")
            notes += (f"The weights are stored as {' and '.join(kinds)} and opened as {taken}.",)
    if device is None:
        as_stored = sum(tensor.nbytes for tensor in stored.values())
        needed = values * dtype.itemsize if dtype is not None else as_stored
        require_memory(needed, f"opening {directory.name or directory}")
    model, unexpected = load_checked(
        cls,
        str(directory),
        directory,
        config=config,
        dtype=dtype or "auto",
        local_files_only=True,
        use_safetensors=True,
        **placement(device),
        **({"trust_remote_code": True} if own is not None else {}),
    )
    _check_types(model, stored, directory)
    notes += describe_kept(kept, asked)
    return Loaded(set_eval(model), unexpected, notes)


def load_checked(
    cls: Any, source: str | None, directory: Path, **arguments: Any
) -> tuple[Any, tuple[str, ...]]:
    """What ``from_pretrained`` of a class makes of a directory, and keys that it has no use for.

    Raises:
        CheckpointError: transformers fails, or a parameter is left without its stored value.
    """
    try:
        with silence_transformers():
            model, info = cls.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
            )
    except ModwrightError:
        raise
    except Exception as error:  # whatever the code of a model raises
        raise CheckpointError(
            f"{directory} cannot be loaded as {cls.__name__}: {first_line(error)}"
        ) from error
    check_loading(info, str(directory), cls.__name__)
    return model, tuple(sorted(info["unexpected_keys"]))


def stored_type(stored: Mapping[str, StoredTensor], model: Any = None) -> torch.dtype | None:
    """The type that holds every stored weight as it is; None where there are none.

    Where types are mixed it is the widest, so that no value is rounded. Tensors that the model, or
    its class, keeps in float32 anyway, or is known to have no use for, do not decide.

    Example:
        >>> stored_type({"a": StoredTensor((2,), "F16", "f"), "b": StoredTensor((2,), "F32", "f")})
        torch.float32
    """
    plain = {name: _PLAIN[t.dtype] for name, t in stored.items() if t.dtype in _PLAIN}
    aside = keys_without_a_type(model)
    deciding = [t for name, t in plain.items() if not any(re.search(one, name) for one in aside)]
    kinds = list(set(deciding or plain.values()))
    return reduce(torch.promote_types, kinds) if kinds else None


def _check_types(model: torch.nn.Module, stored: dict[str, StoredTensor], directory: Path) -> None:
    """Refuses weights that were cast from numbers which mean nothing without their scales."""
    odd = {name: tensor for name, tensor in stored.items() if tensor.dtype not in _PLAIN}
    names = [name for name, p in model.named_parameters() if p.is_floating_point()] if odd else []
    for name, tensor in sorted(odd.items()):
        # A class with a head, or without one, knows the tensor under a longer or shorter name.
        weight = any(f".{one}".endswith(f".{name}") or name.endswith(f".{one}") for one in names)
        if weight or tensor.dtype.startswith("F"):
            raise CheckpointError(
                f"{directory}: {name} is stored as {tensor.dtype} in {tensor.file}, which is no "
                f"plain weight; dequantize or convert it first: {', '.join(_PLAIN)}"
            )


def check_loading(info: dict[str, Any], where: str, cls: str) -> None:
    """Raise when a load left a parameter without its stored value.

    transformers would fill it at random and go on; a workbench must not.

    Raises:
        CheckpointError: names the tensors that are missing or have another shape.
    """
    mismatched = sorted((str(name), tuple(a), tuple(b)) for name, a, b in info["mismatched_keys"])
    if mismatched:
        name, in_file, in_config = mismatched[0]
        more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise CheckpointError(
            f"{where}: the weights do not fit the config: {name} is {in_file} in the file and "
            f"{in_config} by the config{more}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" (and {len(missing) - 5} more)" if len(missing) > 5 else ""
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of {cls} are not in the weights: "
            f"{', '.join(missing[:5])}{more}"
        )


def placement(device: torch.device | None) -> dict[str, Any]:
    """The arguments with which from_pretrained puts all weights on one device as it reads."""
    return {} if device is None or device.type == "cpu" else {"device_map": {"": device}}


def _read_config_json(directory: Path) -> dict[str, Any]:
    """The fields of a config; refuses what they alone tell is no plain checkpoint."""
    file = directory / "config.json"
    if not os.path.lexists(file):
        raise CheckpointError(f"{directory} is not a checkpoint: {_without_config(directory)}")
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{file} names no model_type, so it is no transformers config")
    names = config.get("architectures")
    if names and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{file}: architectures must be a list of names, not {names!r:.60}")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        told = part.get("quantization_config") or part.get("compression_config")
        if told:
            told = told if isinstance(told, dict) else {}
            raise CheckpointError(
                f"{directory}: the weights are stored quantized "
                f"({told.get('quant_method', 'unknown method')}); dequantize them first, edits "
                "need plain floating-point weights"
            )
    lists = ("drop_attn_list", "drop_mlp_list", "drop_block_list")
    if given := [key for key in lists if config.get(key)]:
        raise CheckpointError(
            f"{file} holds lists of dropped layers ({', '.join(given)}) that the stock class does "
            "not read; open the whole model and drop them: modwright edit llm_drop MODEL -o OUT "
            f"--lists {file}"
        )
    if (directory / "adapter_config.json").exists():
        raise CheckpointError(
            f"{directory} holds a PEFT adapter; merge it (merge_and_unload) and save that model"
        )
    return config


def _without_config(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    for name in names:
        if name.endswith(".gguf"):
            return f"it holds GGUF files; give one of them: {directory / name}"
    if "adapter_config.json" in names:
        return "it holds a PEFT adapter; merge it into its base model first (merge_and_unload)"
    for below in (directory / name for name in names):
        if (below / "config.json").is_file() and any(below.glob("*.safetensors")):
            return f"it has no config.json; did you mean {str(below)!r}?"
    return f"it has no config.json (it holds {', '.join(names[:4]) or 'nothing'})"


def _config(
    directory: Path, stored: dict[str, Any], trust_remote_code: bool
) -> transformers.PreTrainedConfig:
    try:
        if is_standalone(stored):
            edited: transformers.PreTrainedConfig = edited_config(stored)
            return edited
        with silence_transformers():
            return transformers.AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        kind = stored["model_type"]
        if kind in transformers.CONFIG_MAPPING:
            raise CheckpointError(
                f"{directory / 'config.json'} is no valid {kind} config: {first_line(error)}"
            ) from error
        hint = "import the package that registers it first"
        if stored.get("auto_map"):
            hint = "it brings its own code: pass trust_remote_code=True if you trust it"
        raise CheckpointError(
            f"{directory}: model type {kind!r} is not known to transformers "
            f"{transformers.__version__}; {hint}"
        ) from error


def _with_default_outputs(config: transformers.PreTrainedConfig) -> tuple[str, ...]:
    """Sets what a config says of the form of outputs, not of their values, to the default.

    transformers itself cannot run a causal model of a config without ``return_dict``.
    """
    wanted = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    other = []
    for name, value in wanted.items():
        for one in (config, config.get_text_config()):
            if getattr(one, name, value) != value:
                setattr(one, name, value)
                other.append(name)
    if not other:
        return ()
    told = " and ".join(dict.fromkeys(other))
    return (f"config.json changes the form of outputs by {told}; the default is taken.",)


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory by name, those of the index if it is sharded.

    Raises:
        CheckpointError: no safetensors weights, a shard is missing, unreadable or cut short, or
            the index names a tensor that its file does not hold.
    """
    if (directory / SINGLE).is_file():
        return _file_header(directory / SINGLE)
    if not (directory / INDEX).is_file():
        raise CheckpointError(_no_weights(directory))
    weight_map = _weight_map(directory / INDEX)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not (directory / shard).is_file():
            lost = sum(file == shard for file in weight_map.values())
            raise CheckpointError(
                f"{directory}: {INDEX} names {shard}, which is missing ({lost} of "
                f"{len(weight_map)} tensors); copy or download it again"
            )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        tensors |= _file_header(directory / shard)
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{directory}: {INDEX} says {name} is in {shard}; it is not")
    return tensors


def _file_header(file: Path) -> dict[str, StoredTensor]:
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


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json(index)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a shard index: {error}") from error


def _no_weights(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return (
            f"{directory} holds its weights only as pickles ({pickled[0]}), which can run code "
            "when read; safetensors is wanted: convert them with transformers' save_pretrained"
        )
    other = [name for name in names if name.endswith(".safetensors")]
    found = f"; it holds {', '.join(other[:3])}" if other else ""
    return f"{directory} has no weights: {SINGLE} or {INDEX} is wanted{found}"
