"""Whether the neurons of an MLP are independent of each other, so that some may go.

An activation that normalizes over the neurons, as PolyNorm or a softmax do, mixes them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from modwright.core.compat.torch import DROPOUTS
from modwright.core.modes import set_eval

__all__ = ["activations_of", "is_separable"]

_ELEMENTWISE = ("transformers.activations", "torch.nn.modules.activation")
"""Modules all of whose classes work on each number by itself, but for those below."""

_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention)


def is_separable(act: Callable[[Tensor], Tensor], width: int) -> bool:
    """No output depends on another neuron than its own.

    What torch and transformers have is known; of other modules and functions a few neurons are
    changed, and then no other may move. One that cannot be run so is not taken for separable.

    Example:
        >>> is_separable(nn.GELU(), 64)
        True
        >>> is_separable(lambda x: x / x.norm(dim=-1, keepdim=True), 64)
        False
    """
    known = type(act).__module__ in _ELEMENTWISE and not isinstance(act, _MIXING)
    if width < 2 or known or isinstance(act, (nn.Identity, *DROPOUTS)):
        return True
    if isinstance(act, nn.Module):
        if any(tensor.is_meta for tensor in (*act.parameters(), *act.buffers())):
            return True  # a model without numbers: it is asked again where there are some
        act = set_eval(copy.deepcopy(act).to("cpu", torch.float64))
    changed = sorted({0, width // 2, width - 1})
    base = torch.randn(width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = base.repeat(1 + len(changed), 1, 1)
    rows[range(1, len(rows)), 0, changed] += 100.0
    try:
        with torch.no_grad():
            out = act(rows)
    except Exception:  # whatever a module of someone else raises
        return False
    if not isinstance(out, Tensor) or out.shape != rows.shape:
        return False
    moved = (out[1:] - out[0]).abs()
    moved[range(len(changed)), 0, changed] = 0
    return float(moved.max()) <= 1e-9 * (1 + float(out[0].abs().max()))


def activations_of(
    module: nn.Module, maps: Iterable[nn.Module], name: str
) -> Iterator[Callable[[Tensor], Tensor]]:
    """What an MLP does between its maps: modules beside them, and the activation by its name."""
    held = {id(part) for one in maps for part in one.modules()}
    yield from _beside(module, held)
    own: Any = getattr(module, "act", None)
    if callable(own) and not isinstance(own, nn.Module):
        yield own
    if name in ACT2FN:
        yield ACT2FN[name]


def _beside(module: nn.Module, held: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        if id(child) in held:
            continue
        if any(id(part) in held for part in child.modules()):
            yield from _beside(child, held)
        else:
            yield child
