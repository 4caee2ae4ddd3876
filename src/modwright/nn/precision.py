"""Computing in float32 or more, whatever the precision of what comes in."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "full_precision"]


def at_least_float32(*tensors: Tensor | None) -> torch.dtype:
    """The widest type of some tensors, float32 or more; None is left out.

    Example:
        >>> at_least_float32(torch.zeros(1).bfloat16(), torch.zeros(1).double())
        torch.float64
    """
    wide = torch.float32
    for tensor in tensors:
        if tensor is not None:
            wide = torch.promote_types(wide, tensor.dtype)
    return wide


def full_precision(x: Tensor) -> torch.autocast | nullcontext[None]:
    """A context in which autocast leaves the products of x's device as they are."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
