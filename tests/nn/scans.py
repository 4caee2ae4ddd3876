"""Inputs of scans, and what a scan gives: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gradients_of", "relative", "scan_inputs", "ssd_inputs"]


def scan_inputs(
    batch: int = 2, length: int = 7, width: int = 3, states: int = 2, **more: Any
) -> dict[str, Tensor]:
    """Everything that a selective scan takes, by name; float64 unless it is said."""
    made = torch.Generator().manual_seed(length)
    dtype = more.get("dtype", torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=dtype)

    return {
        "u": normal(batch, length, width),
        "dt": F.softplus(normal(batch, length, width)),
        "A": -normal(width, states).exp(),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(width),
        "z": normal(batch, length, width),
        "h0": normal(batch, width, states),
    }


def ssd_inputs(
    batch: int = 2, length: int = 7, heads: int = 4, groups: int = 2, **more: Any
) -> dict[str, Tensor]:
    """Everything that the scan of Mamba-2 takes, by name, heads of 3 channels with 2 states."""
    made = torch.Generator().manual_seed(length)
    dtype = more.get("dtype", torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=dtype)

    return {
        "x": normal(batch, length, heads, 3),
        "dt": F.softplus(normal(batch, length, heads)),
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, 2),
        "C": normal(batch, length, groups, 2),
        "D": normal(heads),
        "h0": normal(batch, heads, 3, 2),
    }


def gradients_of(
    scan: Callable[..., tuple[Tensor, Tensor]],
    given: dict[str, Tensor],
    *,
    forward_in: AbstractContextManager[Any] | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """Both outputs of a scan, and the gradient of each input from both of them."""
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    with forward_in or nullcontext():
        outputs = scan(**inputs, **settings)
    made = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=made, dtype=torch.float64) for t in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights))
    found = torch.autograd.grad(loss, list(inputs.values()))
    values = {"y": outputs[0].detach(), "last": outputs[1].detach()}
    return {**values, **{f"grad {name}": grad for name, grad in zip(inputs, found)}}


def relative(found: Tensor, truth: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if not truth.numel():
        return 0.0
    found, truth = found.detach(), truth.detach()
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
