"""Which Auto classes open a checkpoint, and what the config of a standalone one says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from modwright.core.errors import CheckpointError
from modwright.core.reading import read_json
from modwright.edits.remodeled import base_class
from modwright.edits.stock_classes import HEADS, known_classes, model_class

__all__ = [
    "HEADS",
    "STANDALONE",
    "auto_classes",
    "code_file",
    "edited_config",
    "is_standalone",
    "model_class",
    "remote_class",
]

STANDALONE = "modwright_standalone_"
"""What the model type of a standalone checkpoint begins with; the stock type follows.

It is a type of its own so that the file beside the weights opens it also where modwright is
imported, and travels with it when it is saved again.
"""


def remote_class(config: transformers.PreTrainedConfig, head: str | None = None) -> Any:
    """The Auto class that loads a checkpoint's own code, or None when it brings no model code."""
    auto_map = getattr(config, "auto_map", None) or {}
    wanted = (config.architectures or [""])[0]
    named = [auto for auto, target in auto_map.items() if str(target).endswith(f".{wanted}")]
    for auto in (HEADS.get(head or ""), *named, *HEADS.values()):
        if auto in auto_map:
            return getattr(transformers, str(auto))
    return None


def auto_classes(model: Any) -> dict[str, type[Any]]:
    """Name of an Auto class -> the stock class that it builds for this model's config.

    The first one builds the model's own class; ``AutoModel``, the bare backbone, follows where it
    builds another.

    Example:
        >>> import modwright
        >>> found = auto_classes(modwright.open("preset:tiny-llama").model)
        >>> {auto: stock.__name__ for auto, stock in found.items()}
        {'AutoModelForCausalLM': 'LlamaForCausalLM', 'AutoModel': 'LlamaModel'}
    """
    own, known = base_class(type(model)), known_classes(base_class(type(model.config)))
    chosen = next(({auto: own} for auto, kinds in known.items() if own in kinds), {})
    if "AutoModel" in known:
        chosen.setdefault("AutoModel", known["AutoModel"][0])
    return chosen


def is_standalone(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a standalone checkpoint."""
    return str(stored.get("model_type", "")).startswith(STANDALONE) and "edits" in stored


def edited_config(stored: Mapping[str, Any]) -> Any:
    """The config of the edited model, from the edits that a standalone checkpoint keeps."""
    own = ("auto_map", "modwright_layout", "per_layer_config")
    fields = {name: value for name, value in stored.items() if name not in own}
    fields["model_type"] = f"modwright_{stored['model_type'].removeprefix(STANDALONE)}"
    fields["architectures"] = [
        name.replace("Standalone", "Modwright", 1) for name in stored.get("architectures") or ()
    ]
    return transformers.CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


def code_file(directory: Path) -> str | None:
    """The Python file that belongs to a standalone checkpoint; it is made anew, never carried."""
    try:
        stored = read_json(directory / "config.json")
        if not is_standalone(stored):
            return None
        return f"{str(stored['auto_map']['AutoConfig']).partition('.')[0]}.py"
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return None
