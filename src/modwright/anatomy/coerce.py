"""What is meant by a model or a part that someone gives, and how a live model is called."""

from __future__ import annotations

import inspect
import os
from typing import Any

from torch import nn

from modwright.core.compat.transformers import has_adapters
from modwright.core.errors import InvalidInputError

__all__ = ["address_of", "cache_keyword", "model_of", "require_no_adapters"]


def model_of(given: Any) -> Any:
    """The model that is given, or that an opened checkpoint, an anatomy or an edit's result holds.

    Raises:
        InvalidInputError: it is none of these.

    Example:
        >>> import modwright
        >>> opened = modwright.open("preset:tiny-llama")
        >>> model_of(opened) is model_of(opened.anatomy) is opened.model
        True
    """
    found = given if isinstance(given, nn.Module) else getattr(given, "model", None)
    if isinstance(found, nn.Module):
        return found
    is_path = isinstance(given, str | os.PathLike)
    hint = f"; open it first: modwright.open({os.fspath(given)!r})" if is_path else ""
    raise InvalidInputError(
        "expected a model, or what modwright.open, Anatomy.of or modwright.apply returned, not "
        f"{type(given).__name__}{hint}"
    )


def require_no_adapters(model: Any) -> None:
    """Refuses a model whose weights are not what it computes with: PEFT adapters add to them."""
    if has_adapters(model):
        raise InvalidInputError(
            f"the model carries PEFT adapters ({type(model).__name__}); merge them first "
            "(model = model.merge_and_unload())"
        )


def address_of(part: Any) -> str:
    """The address of a part, or the address itself; else InvalidInputError.

    Example:
        >>> address_of("blocks.0.attention")
        'blocks.0.attention'
    """
    found = part if isinstance(part, str) else getattr(part, "address", None)
    if isinstance(found, str) and found:
        return found
    raise InvalidInputError(
        "expected a part of an anatomy or its address, such as anatomy.blocks[0].attention or "
        f"'blocks.0.attention', not {type(part).__name__}"
    )


def cache_keyword(model: Any) -> str:
    """The keyword of a model's cache and of its outputs; transformers 5.24 renamed it.

    Example:
        >>> import modwright
        >>> cache_keyword(modwright.open("preset:tiny-llama").model) in ("cache", "past_key_values")
        True
    """
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "cache_params") if name in taken), "past_key_values")
