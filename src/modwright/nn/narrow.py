"""Gives a module a narrower result without a class of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["narrow_"]

_NAMES = ("out_features", "out_channels", "embedding_dim", "nf")
"""How modules call the width of their result."""


def narrow_(module: nn.Module, axes: Mapping[str, int], size: int) -> nn.Module:
    """Makes some parameters of a module narrower, in place; their values are new and undefined.

    Args:
        module: of any class whose forward takes its widths from its parameters.
        axes: name of a parameter -> the axis that gets the new size.
        size: the new size.

    Raises:
        ValueError: it has no such parameter or axis, or the axes are of different sizes.

    Example:
        >>> narrow_(torch.nn.Embedding(10, 4), {"weight": -1}, 3)
        Embedding(10, 3)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    sizes = set()
    for name, axis in axes.items():
        old = dict(module.named_parameters(recurse=False)).get(name)
        if old is None:
            raise ValueError(f"{type(module).__name__} has no parameter {name!r}")
        if not -old.ndim <= axis < old.ndim:
            raise ValueError(f"parameter {name!r} {tuple(old.shape)} has no axis {axis}")
        sizes.add(old.shape[axis])
        shape = list(old.shape)
        shape[axis] = size
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    if len(sizes) > 1:
        raise ValueError(f"the axes {dict(axes)} are {sorted(sizes)} wide, not of one width")
    for name in _NAMES:
        if getattr(module, name, None) in sizes:
            setattr(module, name, size)
    return module
