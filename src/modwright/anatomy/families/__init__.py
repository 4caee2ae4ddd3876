"""One file per family: it maps names and layouts and never computes. Files here are discovered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modwright.core.errors import UnsupportedArchitecture
from modwright.core.registry import Registry

if TYPE_CHECKING:
    from modwright.anatomy.families.family import Family

__all__ = [
    "BY_MODULES",
    "MODEL_TYPES",
    "REFUSED",
    "families",
    "family_names",
    "family_of",
    "register_family",
]
__all__ += ["wrapped"]

MODEL_TYPES: Registry[type[Family]] = Registry("model type", __name__)
BY_MODULES: Registry[type[Family]] = Registry("family by modules", __name__)
"""Families that serve no model type by its name: they say of a model whether it is theirs."""

_MORE_NORMS = (
    "its blocks normalize what attention and MLP return (norms after the sublayers), and no layout "
    "here stands for that"
)
_NORMED = (
    "exaone4 gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text glm4 olmo2 olmo3"
)
_SEVERAL_KINDS = (
    "its layers are of several kinds, some with an attention and others with a recurrence, and no "
    "family here reads both"
)
_HYBRID = "bamba granitemoehybrid jamba lfm2 nemotron_h qwen3_next zamba zamba2"
# Model types that look like a known one and cannot be opened, with the reason.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_NORMED.split(), _MORE_NORMS),
    **dict.fromkeys(_HYBRID.split(), _SEVERAL_KINDS),
    "albert": "its layers are one module used many times, so none can be edited alone",
}

_TOLD = ("num_hidden_layers", "hidden_size", "num_attention_heads")


def register_family(family: type[Family]) -> type[Family]:
    """Class decorator that makes a family known, from inside the package or from a user's code.

    A family without model types is asked by ``recognizes`` where no other names the model's type.

    Raises:
        InvalidInputError: another family already claims one of its model types.
    """
    name = family.__qualname__
    if not family.model_types:
        BY_MODULES.add(family.name, family, again=lambda old: old.__qualname__ == name)
    for model_type in family.model_types:
        MODEL_TYPES.add(model_type, family, again=lambda old: old.__qualname__ == name)
    return family


def families() -> dict[str, type[Family]]:
    """All families by the transformers model type that they serve.

    Those that know a model by its modules are in ``BY_MODULES``.
    """
    return MODEL_TYPES.all()


def family_names() -> list[str]:
    """The model types that can be opened."""
    return MODEL_TYPES.names()


def wrapped(model: Any) -> Any:
    """A model with a transformers config: itself, or around a model of another library."""
    if getattr(model, "config", None) is not None:
        return model
    for family in dict.fromkeys(families().values()):
        if (found := family.wrap(model)) is not None:
            return found
    raise UnsupportedArchitecture(
        f"{type(model).__name__} has no config, so its family is not known; wrap it or register a "
        "family, see CONTRIBUTING.md"
    )


def family_of(config: Any, model: Any = None) -> Family:
    """The family of a config, stock or remodeled; with the model, the one that names its modules.

    Raises:
        UnsupportedArchitecture: names what was recognized, and how a family is added.
    """
    model_type = str(getattr(config, "model_type", "") or type(config).__name__)
    base = model_type.removeprefix("modwright_")
    family = families().get(base)
    if family is None:
        from modwright.anatomy.families.recognition import recognized, told_by_modules

        family = recognized(config, model, BY_MODULES.all().values())
    if family is None:
        told = {n: getattr(config, n, None) for n in _TOLD}
        seen = ", ".join(f"{n} {v}" for n, v in told.items() if v is not None) or "no known fields"
        reason = REFUSED.get(base, "") or told_by_modules(model)
        if getattr(config, "is_encoder_decoder", False):
            reason = "it is an encoder with a decoder, and there is no part for cross-attention"
        raise UnsupportedArchitecture(
            f"no family for model type {model_type!r} (recognized: {seen})"
            f"{reason and f': {reason}'}; known: {', '.join(family_names())}, and models of images "
            "that consist of modwright.nn.block.Block; one file adds a family, see CONTRIBUTING.md"
        )
    instance = family(config)
    instance.check()
    return instance if model is None else instance.fitting(model)
