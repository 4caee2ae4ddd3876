"""One file per family: it maps names and layouts and never computes. Files here are discovered."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from modwright.errors import Refused, UnsupportedArchitecture

if TYPE_CHECKING:
    from modwright.anatomy.families.family import Family

__all__ = ["families", "family_names", "family_of", "register_family"]

_REGISTERED: dict[str, type[Family]] = {}


def register_family(family: type[Family]) -> type[Family]:
    """Class decorator that makes a family known, from inside the package or from a user's code.

    Raises:
        Refused: another family already claims one of its model types.
    """
    for model_type in family.model_types:
        other = _REGISTERED.get(model_type)
        if other is not None and other.__qualname__ != family.__qualname__:
            raise Refused(f"model type {model_type!r} already belongs to family {other.name!r}")
        _REGISTERED[model_type] = family
    return family


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        if module.name != "family":
            importlib.import_module(f"{__name__}.{module.name}")


def families() -> dict[str, type[Family]]:
    """All families by the transformers model type that they serve."""
    _discover()
    return dict(_REGISTERED)


def family_names() -> list[str]:
    """The model types that can be opened."""
    return sorted(families())


def family_of(config: Any) -> Family:
    """The family of a config, for stock models and for remodelled ones.

    Raises:
        UnsupportedArchitecture: names what was recognised, and how a family is added.
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
        raise UnsupportedArchitecture(
            f"no family for model type {model_type!r} (recognised: {seen}); known: "
            f"{', '.join(family_names())}; one file adds a family, see CONTRIBUTING.md"
        )
    instance = family(config)
    instance.check()
    return instance
