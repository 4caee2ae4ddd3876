"""Which transformers class a checkpoint is built with, and which Auto classes open it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from modwright.core.compat.transformers import model_classes
from modwright.core.errors import CheckpointError, InvalidInputError, unknown_name
from modwright.core.reading import read_json
from modwright.edits.remodeled import base_class

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

HEADS = {
    "causal-lm": "AutoModelForCausalLM",
    "base": "AutoModel",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "image-to-image": "AutoModelForImageToImage",
}

STANDALONE = "modwright_standalone_"
"""What the model type of a standalone checkpoint begins with; the stock type follows.

It is a type of its own so that the file beside the weights opens it also where modwright is
imported, and travels with it when it is saved again.
"""


def model_class(
    config: transformers.PreTrainedConfig, head: str | None = None
) -> type[transformers.PreTrainedModel]:
    """The class that builds this config's model.

    Without ``head``, the class that ``config.architectures`` names: as the Auto classes know it,
    registered ones included, else as transformers exports it. A config that names none, or one that
    nobody knows, gives the causal language model if its type has one, else the bare model.

    Args:
        config: the config.
        head: a key of `HEADS`, to build another class than the checkpoint was saved from.

    Raises:
        InvalidInputError: unknown head, or the model type has no such class; the valid ones are
            listed.

    Example:
        >>> model_class(transformers.LlamaConfig()).__name__
        'LlamaForCausalLM'
        >>> model_class(transformers.LlamaConfig(), head="base").__name__
        'LlamaModel'
    """
    known = _known(type(config))
    if head is not None:
        if head not in HEADS:
            raise unknown_name("head", head, HEADS)
        if HEADS[head] in known:
            return known[HEADS[head]][0]
        valid = ", ".join(name for name, auto in HEADS.items() if auto in known)
        raise InvalidInputError(
            f"model type {config.model_type!r} has no head {head!r}; it has: {valid}"
        )
    wanted = (config.architectures or [""])[0]
    for kinds in known.values():
        for found in kinds:
            if found.__name__ == wanted:
                return found
    exported = getattr(transformers, wanted, None) if wanted else None
    if isinstance(exported, type) and issubclass(exported, transformers.PreTrainedModel):
        return exported
    autos = ["AutoModelForCausalLM", "AutoModel"]
    if wanted and not wanted.endswith(("ForCausalLM", "LMHeadModel")):
        autos.reverse()
    for auto in autos:
        if auto in known:
            return known[auto][0]
    raise InvalidInputError(f"no model class is known for model type {config.model_type!r}")


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
    own, known = base_class(type(model)), _known(base_class(type(model.config)))
    chosen = next(({auto: own} for auto, kinds in known.items() if own in kinds), {})
    if "AutoModel" in known:
        chosen.setdefault("AutoModel", known["AutoModel"][0])
    return chosen


def _known(config_class: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """Name of an Auto class -> the classes that it may build for a config class, if any."""
    found = {
        auto: model_classes(getattr(transformers, auto), config_class) for auto in HEADS.values()
    }
    return {auto: kinds for auto, kinds in found.items() if kinds}


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
