"""Registers a remodelled class under every Auto class that serves the stock config."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["register_models"]


@cache
def register_models(config_class: Any) -> None:
    """Makes ``AutoModel...`` build the remodelled classes of one config.

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
            if model_class.config_class is not stock:
                continue  # another family's model that reads this config in part
            register = auto.register  # type: ignore[attr-defined]
            register(config_class, remodelled(model_class), exist_ok=True)
