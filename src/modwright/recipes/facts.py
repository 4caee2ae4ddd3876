"""What a report and a log say of the machine, the packages and the model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from modwright.checkpoint import peak_rss_bytes
from modwright.checkpoint.auxiliary_files import weight_files
from modwright.checkpoint.classes import HEADS, model_class
from modwright.checkpoint.source import Source
from modwright.core.errors import InvalidInputError

__all__ = ["auto_class", "environment", "listed", "opened_files", "versions"]


def versions() -> dict[str, str]:
    """The packages that decide about results."""
    names = ("modwright", "torch", "transformers", "safetensors", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def environment(model: Any) -> dict[str, Any]:
    """What the numbers of a report were measured on."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "memory": f"{peak_rss_bytes() / 1e9:.2f} GB at most",
    }


def opened_files(source: Source) -> dict[str, Any]:
    """What was opened, as files: what it is called and how many bytes; nothing of random weights.

    The bytes of a quantized file are not those of the weights that it was expanded to.
    """
    files = () if source.path is None else weight_files(source.path)
    if not files:
        return {}
    name = files[0].name if len(files) == 1 else f"{len(files)} weight files"
    return {"opened_file": name, "opened_bytes": sum(file.stat().st_size for file in files)}


def auto_class(model: Any) -> str:
    """The Auto class that opens a checkpoint of this model, head and all."""
    # What opens anything is named where nothing says more.
    for head, auto in sorted(HEADS.items(), key=lambda item: item[0] == "base"):
        with suppress(InvalidInputError):
            if model_class(model.config, head) is type(model):
                return auto
    return "AutoModel"


def listed(facts: Mapping[str, Any]) -> str:
    """Facts on one line.

    Example:
        >>> listed({"threads": 2, "dtype": "float32"})
        'threads 2, dtype float32'
    """
    return ", ".join(f"{name} {value}" for name, value in facts.items())
