"""Multiply-accumulates of any module, counted while it runs without numbers: matrix products only.

Norms, activations, softmax, rotary angles and table look-ups are not matrix products and count 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modwright.core.modes import set_eval

__all__ = ["counted_products", "forward_macs", "to_meta"]

_PRODUCTS_OF_TOKENS = ("bmm", "baddbmm", "_scaled_dot_product")


def forward_macs(model: nn.Module, *shape: int, attention: bool = True) -> int:
    """Products of matrices and convolutions in one pass over zeros of a shape.

    No numbers are computed: a copy of the model stands on the meta device.

    Args:
        model: takes one tensor.
        shape: of that tensor, (1, 3, 224, 224) for an image.
        attention: False leaves out products of tokens with tokens, as some papers do.

    Example:
        >>> forward_macs(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
        21600
    """
    model = set_eval(to_meta(model))
    with counted_products() as counter:
        model(torch.zeros(*shape, device="meta"))
    by_step: dict[Any, int] = counter.get_flop_counts().get("Global", {})
    left_out = () if attention else _PRODUCTS_OF_TOKENS
    counted = (n for step, n in by_step.items() if not any(word in str(step) for word in left_out))
    return sum(counted) // 2


@contextmanager
def counted_products() -> Iterator[FlopCounterMode]:
    """Counts, without gradients; fused attention, one opaque step to the counter, is not fused."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        yield counter


def to_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device: its structure. No weight is copied on the way.

    Example:
        >>> to_meta(nn.Linear(2, 3)).weight.is_meta
        True
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        trained = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if trained else bare
    return copy.deepcopy(model, memo)
