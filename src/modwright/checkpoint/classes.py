"""Which transformers class a checkpoint is built with."""

from __future__ import annotations

from typing import Any

import transformers

from modwright.core.compat.transformers import model_classes
from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["HEADS", "model_class", "remote_class"]

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
    if head is not None:
        return _with_head(config, head)
    wanted = (config.architectures or [""])[0]
    for auto in HEADS.values():
        for found in _mapped(auto, config):
            if found.__name__ == wanted:
                return found
    exported = getattr(transformers, wanted, None) if wanted else None
    if isinstance(exported, type) and issubclass(exported, transformers.PreTrainedModel):
        return exported
    if not wanted or wanted.endswith(("ForCausalLM", "LMHeadModel")):
        autos = ("AutoModelForCausalLM", "AutoModel")
    else:
        autos = ("AutoModel", "AutoModelForCausalLM")
    for auto in autos:
        for found in _mapped(auto, config):
            return found
    raise InvalidInputError(f"no model class is known for model type {config.model_type!r}")


def remote_class(config: transformers.PreTrainedConfig, head: str | None = None) -> Any:
    """The Auto class that loads a checkpoint's own code, or None when it brings no model code."""
    auto_map = getattr(config, "auto_map", None) or {}
    if head is not None and HEADS.get(head) in auto_map:
        return getattr(transformers, HEADS[head])
    wanted = (config.architectures or [""])[0]
    named = [auto for auto, target in auto_map.items() if str(target).endswith(f".{wanted}")]
    for auto in (*named, *HEADS.values()):
        if auto in auto_map:
            return getattr(transformers, auto)
    return None


def _with_head(
    config: transformers.PreTrainedConfig, head: str
) -> type[transformers.PreTrainedModel]:
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    for found in _mapped(HEADS[head], config):
        return found
    valid = [name for name, auto in HEADS.items() if _mapped(auto, config)]
    raise InvalidInputError(
        f"model type {config.model_type!r} has no head {head!r}; it has: {', '.join(valid)}"
    )


def _mapped(auto: str, config: transformers.PreTrainedConfig) -> tuple[type[Any], ...]:
    return model_classes(getattr(transformers, auto), type(config))
