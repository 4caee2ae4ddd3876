"""One file per family: it maps names and layouts and never computes. Files here are discovered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modwright.anatomy.families.refused import reason_against
from modwright.core.errors import UnsupportedArchitecture
from modwright.core.registry import Registry

if TYPE_CHECKING:
    from modwright.anatomy.families.family import Family

__all__ = ["MODEL_TYPES", "families", "family_names", "family_of", "register_family", "wrapped"]

MODEL_TYPES: Registry[type[Family]] = Registry("model type", __name__)


def register_family(family: type[Family]) -> type[Family]:
    """Class decorator that makes a family known, from inside the package or from a user's code.

    Raises:
        InvalidInputError: another family already claims one of its model types.
    """
    name = family.__qualname__
    for model_type in family.model_types:
        MODEL_TYPES.add(model_type, family, again=lambda old: old.__qualname__ == name)
    return family


def families() -> dict[str, type[Family]]:
    """All families by the transformers model type that they serve."""
    return MODEL_TYPES.all()


def family_names() -> list[str]:
    """The model types that can be opened."""
    return MODEL_TYPES.names()


def wrapped(model: Any) -> Any:
    """A model with a transformers config: itself, or around a model of another library.

    Raises:
        UnsupportedArchitecture: no family knows it.
    """
    if getattr(model, "config", None) is not None:
        return model
    for family in dict.fromkeys(families().values()):
        found = family.wrap(model)
        if found is not None:
            return found
    raise UnsupportedArchitecture(
        f"{type(model).__name__} has no config, so its family is not known; wrap it or register a "
        "family, see CONTRIBUTING.md"
    )


def family_of(config: Any, model: Any = None) -> Family:
    """The family of a config, for stock models and for remodeled ones.

    Args:
        config: of the model.
        model: the model itself, if it is there: versions of one architecture may name their
            modules differently.

    Raises:
        UnsupportedArchitecture: names what was recognized, and how a family is added.
    """
    model_type = str(getattr(config, "model_type", "") or type(config).__name__)
    base = model_type.removeprefix("modwright_")
    family = families().get(base)
    if family is None:
        shown = {
            name: getattr(config, name)
            for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
            if getattr(config, name, None) is not None
        }
        seen = ", ".join(f"{name} {value}" for name, value in shown.items()) or "no known fields"
        reason = reason_against(base, config)
        raise UnsupportedArchitecture(
            f"no family for model type {model_type!r} (recognized: {seen}"
            f"{f'): {reason}' if reason else ')'}; known: {', '.join(family_names())}; one file "
            "adds a family, see CONTRIBUTING.md"
        )
    instance = family(config)
    instance.check()
    return instance if model is None else instance.fitting(model)
