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
from modwright.nn.activations import make_activation
from modwright.nn.component import component_of

__all__ = ["activations_of", "is_separable", "named_activation", "stored_activation"]

_ELEMENTWISE = ("transformers.activations", "torch.nn.modules.activation")
"""Modules all of whose classes work on each number by itself, but for those below."""

_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention)


def is_separable(act: Callable[[Tensor], Tensor], width: int) -> bool:
    """No output depends on another neuron than its own.

    A registered component says so itself, and what torch and transformers have is known; of other
    modules and functions a few neurons are changed, and then no other may move. One that cannot be
    run so is not taken for separable.

    Example:
        >>> is_separable(nn.GELU(), 64)
        True
        >>> is_separable(lambda x: x / x.norm(dim=-1, keepdim=True), 64)
        False
    """
    said = getattr(act, "separable", None)
    if said is not None and isinstance(act, nn.Module) and component_of(act) is not None:
        return bool(said)
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


def named_activation(name: str) -> Callable[[Tensor], Tensor]:
    """What transformers has under a name, else the registered activation of that name.

    Raises:
        ValueError: there is none.
    """
    found: Callable[[Tensor], Tensor] = ACT2FN[name] if name in ACT2FN else make_activation(name)
    return found


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


def stored_activation(module: nn.Module, maps: Iterable[nn.Module], name: str) -> nn.Module | None:
    """The activation of an MLP, where it is a module that holds parameters or buffers.

    It is known by its class: that of a registered activation, or what transformers has by its name.
    """
    held = {id(part) for one in maps for part in one.modules()}
    usual: tuple[type, ...] = (type(ACT2FN[name]),) if name in ACT2FN else ()
    for child in _beside(module, held):
        component = component_of(child)
        is_one = isinstance(child, usual) or (component and component.kind == "activation")
        if is_one and any(True for _ in (*child.parameters(), *child.buffers())):
            return child
    return None


def _beside(module: nn.Module, held: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        if id(child) in held:
            continue
        if any(id(part) in held for part in child.modules()):
            yield from _beside(child, held)
        else:
            yield child
