"""Multiply-accumulates of one forward pass, for models without an anatomy too."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modwright.core.modes import set_eval

__all__ = ["forward_macs", "to_meta"]

_PRODUCTS_OF_TOKENS = ("bmm", "baddbmm", "_scaled_dot_product")


def forward_macs(model: nn.Module, *shape: int, attention: bool = True) -> int:
    """Products of matrices and convolutions in one pass over zeros of a shape.

    Norms, activations, softmax and pooling count nothing. No numbers are computed: the model may
    stand on the meta device, and is moved there otherwise.

    Args:
        model: takes one tensor.
        shape: of that tensor, (1, 3, 224, 224) for an image.
        attention: False leaves out products of tokens with tokens, as some papers do.

    Example:
        >>> forward_macs(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
        21600
    """
    model = set_eval(to_meta(model))
    # Fused attention is one opaque step to the counter, so the one that multiplies matrices runs.
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.zeros(*shape, device="meta"))
    by_step: dict[Any, int] = counter.get_flop_counts()["Global"]
    counted = (
        flops
        for step, flops in by_step.items()
        if attention or not any(word in str(step) for word in _PRODUCTS_OF_TOKENS)
    )
    return sum(counted) // 2


def to_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device: its structure. No weight is copied on the way.

    Example:
        >>> to_meta(nn.Linear(2, 3)).weight.is_meta
        True
    """
    held: Any = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for tensor in held:
        bare = tensor.detach().to("meta")
        trained = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if trained else bare
    return copy.deepcopy(model, memo)
