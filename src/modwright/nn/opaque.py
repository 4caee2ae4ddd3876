"""A module of any kind at the place of an attention or an MLP, as its host calls it."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["Opaque", "as_opaque"]


class Opaque(nn.Module):
    """Mixed into the class of a module that stands where an attention or an MLP stood.

    The module keeps its name, its parameters and theirs; it is counted as a whole. What it reads
    comes first, whatever the host calls it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args and "hidden_states" in kwargs:
            args = (kwargs.pop("hidden_states"),)
        return super().forward(*args, **kwargs)


class _Paired(Opaque):
    """For hosts that take (output, attention weights): transformers' blocks do so."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        return out if isinstance(out, tuple) else (out, None)


def as_opaque(module: nn.Module, paired: bool = False) -> nn.Module:
    """The module itself, marked, and returning a pair if its host wants one.

    Example:
        >>> import torch
        >>> module = as_opaque(nn.Linear(4, 4), paired=True)
        >>> module(torch.zeros(1, 4))[0].shape, isinstance(module, nn.Linear)
        (torch.Size([1, 4]), True)
    """
    kind: Any = type(module)
    module.__class__ = _marked(kind, paired)
    return module


@cache
def _marked(base: Any, paired: bool) -> type[nn.Module]:
    mark = _Paired if paired else Opaque
    fields = {"__module__": base.__module__, "__reduce_ex__": _by_base, "_opaque": (base, paired)}
    return type(base.__name__, (mark, base), fields)


def _by_base(self: Any, protocol: Any) -> tuple[Any, ...]:
    """How such a module is copied and pickled: by the class that was marked."""
    return _empty, type(self)._opaque, self.__dict__


def _empty(base: Any, paired: bool) -> Any:
    kind: Any = _marked(base, paired)
    return kind.__new__(kind)
