"""Opens checkpoints of Mamba's authors: a config.json of their names beside a pytorch_model.bin.

Their repository (state-spaces/mamba) and transformers call the same tensors nearly alike; what the
config says in other words becomes a config of transformers, or is refused by name. No code of a
torch file runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mamba2Config, MambaConfig, PreTrainedConfig

from modwright.checkpoint.classes import model_class
from modwright.checkpoint.directory import Loaded, check_loading, load_checked, placement
from modwright.checkpoint.memory import require_memory
from modwright.checkpoint.plausible import require_counts, require_fit
from modwright.core.errors import CheckpointError, first_line
from modwright.core.modes import set_eval
from modwright.core.reading import read_json, refuse_no_weights

__all__ = ["has_state_spaces_layout", "load_state_spaces"]

_EMBEDDING = "backbone.embedding.weight"
_FILES = ("model.safetensors", "pytorch_model.bin")
_NOTE = "The checkpoint is of the layout of state-spaces/mamba; what is saved is of transformers'."

# Field of theirs -> field of transformers', for each kind of layer.
_SHARED = {
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init_floor": "time_step_floor",
}
_FIELDS = {
    "Mamba1": {
        **_SHARED,
        "dt_rank": "time_step_rank",
        "dt_init": "time_step_init_scheme",
        "dt_scale": "time_step_scale",
    },
    "Mamba2": {
        **_SHARED,
        "headdim": "head_dim",
        "ngroups": "n_groups",
        "chunk_size": "chunk_size",
        "dt_limit": "time_step_limit",
    },
}
# What neither changes the function of stored weights, nor of any config.
_SILENT = {"layer", "use_fast_path", "use_mem_eff_path", "A_init_range", "conv_init"}
_SILENT |= {"fused_add_norm", "pad_vocab_size_multiple", "vocab_size", "architectures"}
# Field -> the value that the models of transformers stand for.
_STOCK: dict[str, Any] = {
    "attn_cfg": {},
    "attn_layer_idx": [],
    "d_intermediate": 0,
    "rms_norm": True,
    "D_has_hdim": False,
    "norm_before_gate": False,
    "rmsnorm": True,
}
_READ = {"d_model", "n_layer", "ssm_cfg", "residual_in_fp32", "tie_embeddings"}


def has_state_spaces_layout(directory: Path) -> bool:
    """A config.json there has the fields of state-spaces/mamba, and is none of transformers'."""
    try:
        fields = read_json(directory / "config.json")
    except CheckpointError:
        return False  # the opening of other directories says what is wrong with it
    if not isinstance(fields, dict) or "model_type" in fields:
        return False
    return {"d_model", "n_layer"} <= fields.keys()


def load_state_spaces(
    directory: Path, dtype: torch.dtype | None, device: torch.device | None, head: str | None
) -> Loaded:
    """The model of transformers with the weights of such a directory.

    Args:
        directory: holds ``config.json`` and ``pytorch_model.bin`` or ``model.safetensors``.
        dtype: None keeps the one that the weights are stored in, the widest where there are more.
        device: where the weights go; None is the CPU.
        head: another class than the causal language model, see `classes.HEADS`.

    Raises:
        CheckpointError: something is missing, damaged, or no model of transformers has it.
    """
    fields = read_json(directory / "config.json")
    stored = _read(directory)
    require_counts(fields, (tuple(tensor.shape) for tensor in stored.values()), str(directory))
    config = _config(fields, stored, directory / "config.json")
    cls: Any = model_class(config, head)
    values = sum(tensor.numel() for tensor in stored.values())
    skeleton = require_fit(cls, config, values, str(directory))
    kinds = [tensor.dtype for tensor in stored.values() if tensor.is_floating_point()]
    if not kinds:
        raise CheckpointError(f"{directory}: the weights hold no floating-point numbers")
    dtype = dtype or reduce(torch.promote_types, kinds)
    if device is None:
        require_memory(values * dtype.itemsize, f"opening {directory.name or directory}")
    state = {
        name.replace("backbone.embedding.", "backbone.embeddings."): t for name, t in stored.items()
    }
    if skeleton is not None:  # transformers fails at tables that are tied and of another size
        wanted = skeleton.state_dict()
        shapes = {n: (t.shape, wanted[n].shape) for n, t in state.items() if n in wanted}
        mismatched = [(n, *pair) for n, pair in shapes.items() if pair[0] != pair[1]]
        check_loading(
            {"mismatched_keys": mismatched, "missing_keys": ()}, str(directory), cls.__name__
        )
    arguments = {"state_dict": state, "config": config, "dtype": dtype, **placement(device)}
    model, unexpected = load_checked(cls, None, directory, **arguments)
    return Loaded(set_eval(model), unexpected, (_NOTE,))


def _read(directory: Path) -> dict[str, Tensor]:
    """The tensors of the one file that there is."""
    file = next((directory / name for name in _FILES if (directory / name).exists()), None)
    if file is None:
        raise CheckpointError(f"{directory} has no weights: {' or '.join(_FILES)} is wanted")
    refuse_no_weights(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, OSError, EOFError) as error:
        told = "it would run code when read" if "weights_only" in str(error) else "it is damaged"
        raise CheckpointError(f"{file} cannot be read: {told}") from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise CheckpointError(f"{file} holds no tensors by name")
    return {str(name): tensor for name, tensor in found.items()}


def _config(
    fields: Mapping[str, Any], stored: Mapping[str, Tensor], file: Path
) -> PreTrainedConfig:
    """What the fields say, as a config of transformers."""
    own = fields.get("ssm_cfg") or {}
    if not isinstance(own, dict):
        raise CheckpointError(f"{file}: ssm_cfg must be a table of fields, not {own!r:.60}")
    kind = own.get("layer", "Mamba1")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise CheckpointError(
            f"{file}: ssm_cfg.layer is {kind!r}, which is not read; valid: {', '.join(_FIELDS)}"
        )
    if _EMBEDDING not in stored or stored[_EMBEDDING].ndim != 2:
        raise CheckpointError(f"{file.parent}: the weights hold no table {_EMBEDDING}")
    told: dict[str, Any] = {
        "hidden_size": fields["d_model"],
        "num_hidden_layers": fields["n_layer"],
        "vocab_size": len(stored[_EMBEDDING]),  # padded, as the table is
        "residual_in_fp32": fields.get("residual_in_fp32", True),
        "tie_word_embeddings": fields.get("tie_embeddings", True),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    }
    for name, value in {**{f"ssm_cfg.{n}": v for n, v in own.items()}, **fields}.items():
        word = name.removeprefix("ssm_cfg.")
        if word in _STOCK:
            if (value or _STOCK[word]) != _STOCK[word] or (word.startswith("rms") and not value):
                raise CheckpointError(
                    f"{file}: {name} is {value!r}, and no Mamba of transformers has that"
                )
        elif word != name and word in _FIELDS[kind]:
            told[_FIELDS[kind][word]] = value
        elif word not in (_SILENT if word != name else _SILENT | _READ):
            raise CheckpointError(f"{file}: {name} = {value!r} is not read here")
    try:
        if kind == "Mamba1":
            return MambaConfig(**told)
        return Mamba2Config(**_heads(told))
    except Exception as error:
        raise CheckpointError(f"{file} is no valid config: {first_line(error)}") from error


def _heads(told: dict[str, Any]) -> dict[str, Any]:
    """With what state-spaces/mamba has where nothing is said."""
    usual = {"state_size": 128, "head_dim": 64, "n_groups": 1, "chunk_size": 256, "expand": 2}
    told = {**usual, **told}
    low, high = told.get("time_step_limit", (0.0, float("inf")))
    told["time_step_limit"] = (float(low), float(high))
    return {**told, "num_heads": told["expand"] * told["hidden_size"] // told["head_dim"]}
