"""What stands where a part was: nothing, or a module of any kind as its host calls it.

A pre-norm block adds the output of its sublayer to the residual stream, so "nothing" is a zero. One
number is enough: it broadcasts, and no tensor of the stream's size is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from modwright.nn.component import component

__all__ = ["Identity", "Opaque", "SkippedAttention", "ZeroModule", "as_opaque", "become"]
__all__ += ["is_placed"]


@component("absent", kind="channel_mixer")
class ZeroModule(nn.Module):
    """Adds nothing to the residual stream: returns one zero in the input's dtype and device.

    Example:
        >>> float(torch.ones(2, 3).add(ZeroModule()(torch.ones(2, 3))).sum())
        6.0
    """

    host_called = True

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states.new_zeros(1)


@component("absent_attention", kind="token_mixer", causal=True)
class SkippedAttention(nn.Module):
    """Adds nothing, in the calling convention of an attention; it owns no key/value cache slot.

    With ``whole`` the zeros have the shape of the input, for blocks that take the result apart.
    """

    host_called = True

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        zero = hidden_states.new_zeros(1)
        return (zero.expand_as(hidden_states) if self.whole else zero), None


@component("pass_through", kind="token_mixer", causal=True)
class Identity(nn.Module):
    """Returns its first argument x, or (x, None), the convention of attention parts."""

    host_called = True

    def __init__(self, as_tuple: bool = False) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, None]:
        return (hidden_states, None) if self.as_tuple else hidden_states

    def extra_repr(self) -> str:
        return f"as_tuple={self.as_tuple}"


class Opaque(nn.Module):
    """Mixed into the class of a module that stands where an attention or an MLP stood.

    The module keeps its name, its parameters and theirs; it is counted as a whole. What it reads
    comes first, whatever the host calls it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args and "hidden_states" in kwargs:
            args = (kwargs.pop("hidden_states"),)
        return super().forward(*args, **kwargs)


def is_placed(module: nn.Module) -> bool:
    """It was put where an attention or an MLP stood, as a whole."""
    return isinstance(module, Opaque)


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
    return become(module, _Paired if paired else Opaque)


def become(module: nn.Module, mark: Any, prefix: str = "") -> nn.Module:
    """The module itself, its class with ``mark`` mixed in; copied and pickled as that."""
    base: Any = type(module)
    module.__class__ = _marked(mark, base, prefix)
    return module


@cache
def _marked(mark: Any, base: Any, prefix: str) -> Any:
    fields = {
        "__module__": (mark if prefix else base).__module__,
        "__reduce_ex__": lambda self, protocol: (_empty, (mark, base, prefix), self.__dict__),
    }
    return type(prefix + base.__name__, (mark, base), fields)


def _empty(mark: Any, base: Any, prefix: str) -> Any:
    kind = _marked(mark, base, prefix)
    return kind.__new__(kind)
