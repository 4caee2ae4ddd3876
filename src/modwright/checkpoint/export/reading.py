"""Reads a standalone checkpoint as the edited model that it was made from, without its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modwright.core.errors import CheckpointError
from modwright.core.reading import read_json

__all__ = ["MODEL_TYPE", "code_file", "edited_config", "is_standalone"]

MODEL_TYPE = "modwright_standalone_"
"""What the model type of a standalone checkpoint begins with; the stock type follows.

It is a type of its own so that the file beside the weights opens it also where modwright is
imported, and travels with it when it is saved again.
"""

_OWN = ("auto_map", "modwright_layout", "per_layer_config")


def is_standalone(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a standalone checkpoint."""
    return str(stored.get("model_type", "")).startswith(MODEL_TYPE) and "edits" in stored


def edited_config(stored: Mapping[str, Any]) -> Any:
    """The config of the edited model, from the edits that a standalone checkpoint keeps."""
    from transformers import CONFIG_MAPPING

    fields = {name: value for name, value in stored.items() if name not in _OWN}
    fields["model_type"] = f"modwright_{stored['model_type'].removeprefix(MODEL_TYPE)}"
    fields["architectures"] = [
        name.replace("Standalone", "Modwright", 1) for name in stored.get("architectures") or ()
    ]
    return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


def code_file(directory: Path) -> str | None:
    """The Python file that belongs to a standalone checkpoint; it is made anew, never carried."""
    try:
        stored = read_json(directory / "config.json")
        if not is_standalone(stored):
            return None
        return f"{str(stored['auto_map']['AutoConfig']).partition('.')[0]}.py"
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return None
