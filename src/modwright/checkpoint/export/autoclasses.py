"""Which Auto classes open a model, and as what stock class."""

from __future__ import annotations

from typing import Any

from modwright.checkpoint.classes import HEADS
from modwright.core.compat.transformers import model_classes

__all__ = ["auto_classes"]


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
    import transformers

    from modwright.edits.remodeled import base_class, base_config_class

    own, config_class = base_class(type(model)), base_config_class(type(model.config))
    built: dict[str, tuple[type[Any], ...]] = {}
    for auto in HEADS.values():
        if found := model_classes(getattr(transformers, auto), config_class):
            built[auto] = found
    first = next((auto for auto, kinds in built.items() if own in kinds), None)
    chosen: dict[str, type[Any]] = {} if first is None else {first: own}
    if "AutoModel" in built:
        chosen.setdefault("AutoModel", built["AutoModel"][0])
    return chosen
