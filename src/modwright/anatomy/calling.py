"""How a live model is called, where versions of transformers differ."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["cache_keyword"]


def cache_keyword(model: Any) -> str:
    """The keyword under which a model takes its key/value cache, and its outputs carry it.

    transformers 5.24 renamed it.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> hasattr(model(torch.tensor([[3]]), use_cache=True), cache_keyword(model))
        True
    """
    takes = inspect.signature(model.forward).parameters
    return "cache" if "cache" in takes else "past_key_values"
