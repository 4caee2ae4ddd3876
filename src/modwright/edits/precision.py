"""Tensors that components keep in float32 while the rest of a model is narrower."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.compat.transformers import keep_float32_on_loading
from modwright.nn.component import listed_tensors

__all__ = ["keep_float32", "keeping_float32", "kept_in_float32", "wide_enough"]


def kept_in_float32(model: nn.Module) -> dict[str, Tensor]:
    """Full name -> tensor, of all that modules of a model list in ``keep_in_fp32``.

    Raises:
        ValueError: a module lists what it does not have.

    Example:
        >>> block = nn.Sequential(nn.Linear(2, 2))
        >>> block[0].keep_in_fp32 = ("bias",)
        >>> list(kept_in_float32(block))
        ['0.bias']
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in model.named_modules()
        for name, tensor in listed_tensors(module, "keep_in_fp32").items()
    }


def wide_enough(dtype: torch.dtype) -> torch.dtype:
    """The type in which a tensor is kept that came as ``dtype``: float32 at least."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def keep_float32(model: Any) -> None:
    """Widens, in place, what components keep in float32, now and when a checkpoint is loaded."""
    kept = kept_in_float32(model)
    _widen(kept, kept)
    keep_float32_on_loading(model, kept)


def keeping_float32(cast: Callable[..., Any]) -> Callable[..., Any]:
    """A model class's ``to``, ``half`` or ``bfloat16``, but for what components keep in float32."""

    @wraps(cast)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: tensor.data for name, tensor in kept_in_float32(self).items()}
        result = cast(self, *args, **kwargs)
        _widen(kept_in_float32(self), before)
        return result

    return keeping


def _widen(kept: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Gives tensors that are too narrow the values that they had, on the device where they are."""
    for name, tensor in kept.items():
        wide = wide_enough(tensor.dtype)
        if tensor.dtype != wide:
            tensor.data = values[name].data.to(device=tensor.device, dtype=wide)
