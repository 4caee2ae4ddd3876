"""Batches, as data gives them: mappings of tensors, of which models take all but the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from modwright.core.errors import InvalidInputError

__all__ = ["Batch", "inputs_of", "logits_of", "unwrapped"]

Batch = Mapping[str, Tensor]


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What a model is called with: all of a batch but its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def logits_of(output: Any, model: Any) -> Tensor:
    """The logits of a model's output; refuses one that gives none."""
    found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        name = type(unwrapped(model)).__name__
        raise InvalidInputError(f"{name} gives no logits, which the objective needs")
    return found


def unwrapped(model: Any) -> Any:
    """What is inside of wrappers for several processes and compiled graphs.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(layer)) is layer
        True
    """
    while not hasattr(model, "config"):
        inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
    return model
