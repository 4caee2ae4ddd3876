"""Makes transformers' Auto classes find remodelled checkpoints."""

from __future__ import annotations

from functools import cache
from typing import Any

from modwright.anatomy.families import families

__all__ = ["register_configs", "register_models"]


def register_configs() -> None:
    """Registers the config class of every family: ``AutoConfig`` knows "modwright_llama"."""
    for model_type in families():
        _register_config(model_type)


@cache
def _register_config(model_type: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from modwright.edits.remodelled import remodelled_config

    if model_type in CONFIG_MAPPING:
        config_class = remodelled_config(CONFIG_MAPPING[model_type])
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


@cache
def register_models(config_class: type[Any]) -> None:
    """Registers a remodelled class under each Auto class that serves the stock config.

    It runs when the first config of a family is made, so that no family's modeling code is imported
    before it is wanted.
    """
    from transformers.models.auto import auto_factory, modeling_auto

    from modwright.edits.remodelled import base_config_class, remodelled

    stock = base_config_class(config_class)
    auto: Any
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or not isinstance(mapping, auto_factory._LazyAutoMapping):
            continue
        if stock in mapping:
            found = mapping[stock]
            model_class = found[0] if isinstance(found, tuple | list) else found
            register = auto.register  # type: ignore[attr-defined]
            register(config_class, remodelled(model_class), exist_ok=True)
