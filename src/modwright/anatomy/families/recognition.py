"""Families of models that no ``model_type`` names: found by what their modules are."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from modwright.core.compat.transformers import model_classes

if TYPE_CHECKING:
    from modwright.anatomy.families.family import Family

__all__ = ["recognized", "told_by_modules"]

_SEEN: WeakKeyDictionary[type[Any], type[Family]] = WeakKeyDictionary()
"""Class of a config -> the family of a model that was built of such a config."""


def recognized(
    config: Any, model: nn.Module | None, families: Iterable[type[Family]]
) -> type[Family] | None:
    """Which of the families knows a model by its modules; None where none does.

    Without the model, what the config builds is looked at, without weights. Models of transformers
    itself have families with their names, so they are not built for this.

    Example:
        >>> from modwright.anatomy.families import BY_MODULES
        >>> from modwright.models.registry import variant_config
        >>> config = variant_config("poolformer_s12")
        >>> recognized(config, None, BY_MODULES.all().values()).name
        'hierarchical_vision'
    """
    if model is None:
        if (seen := _SEEN.get(type(config))) is not None:
            return seen
        model = _built(config)
    if model is None:
        return None
    found = next((family for family in families if family.recognizes(model)), None)
    if found is not None:
        _SEEN[type(config)] = found
    return found


def _built(config: Any) -> nn.Module | None:
    """The model of a config on the meta device: its structure."""
    from transformers import CONFIG_MAPPING, AutoModel

    base = str(getattr(config, "model_type", "")).removeprefix("modwright_")
    stock = CONFIG_MAPPING[base] if base in CONFIG_MAPPING else type(config)
    found = model_classes(AutoModel, stock)
    if not found or found[0].__module__.startswith("transformers."):
        return None
    with torch.device("meta"):
        model: nn.Module = found[0](copy.deepcopy(config))
    return model


def told_by_modules(model: nn.Module | None) -> str:
    """Why a model cannot be opened, as far as its modules say it; else an empty string."""
    kinds = [] if model is None else [type(module) for module in model.modules()]
    convolves = sum(issubclass(kind, nn.Conv2d) for kind in kinds) > 1
    if convolves and sum(issubclass(kind, nn.Linear) for kind in kinds) <= 1:
        return "a network of convolutions: it has no attention and no MLP"
    return ""
