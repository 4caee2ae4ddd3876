"""What the functions of this room take, and how they refuse what they do not."""

from __future__ import annotations

import torch
from torch import nn

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["as_anatomy", "at_least", "dtype_of"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def as_anatomy(model: nn.Module | Anatomy) -> Anatomy:
    """An anatomy as it is; a model opened."""
    return model if isinstance(model, Anatomy) else Anatomy.of(model)


def at_least(lowest: int, **values: object) -> None:
    """Refuses a named value that is not a whole number from ``lowest`` on.

    Example:
        >>> at_least(1, length=0)
        Traceback (most recent call last):
        modwright.core.errors.InvalidInputError: length must be a whole number, 1 or more, not 0
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise InvalidInputError(
                f"{name} must be a whole number, {lowest} or more, not {value!r}"
            )


def dtype_of(dtype: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    """A dtype given as such, by its name, or not at all."""
    if dtype is None:
        return default
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    found: torch.dtype = getattr(torch, dtype)
    return found
