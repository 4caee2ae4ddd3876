"""Which transformers class builds the model of a config."""

from __future__ import annotations

from typing import Any

import transformers

from modwright.core.compat.transformers import model_classes
from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["HEADS", "known_classes", "model_class"]

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
    known = known_classes(type(config))
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


def known_classes(config_class: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """Name of an Auto class -> the classes that it may build for a config class, if any."""
    found = {
        auto: model_classes(getattr(transformers, auto), config_class) for auto in HEADS.values()
    }
    return {auto: kinds for auto, kinds in found.items() if kinds}
