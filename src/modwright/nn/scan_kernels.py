"""GPU kernels of other packages for the scans of Mamba, where they are installed.

Nothing here is needed: without the packages, and on other devices, each function gives None and the
scans of this package run. Kernels get float32, whatever the precision of the input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEVICES", "kernel_of", "kernel_selective_scan", "kernel_ssd_scan"]

DEVICES = ["cuda"]
"""Types of devices on which kernels are looked for."""

SELECTIVE = (("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"),)
SSD = ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
GLA = ("fla.ops.simple_gla", "chunk_simple_gla")


def kernel_of(x: Tensor, *where: tuple[str, str]) -> Callable[..., Any] | None:
    """The first function that can be imported, for a tensor on a device that has kernels.

    None in a graph (``torch.compile``, ``torch.export``), for float64, which kernels lack, and for
    a tensor without numbers.

    Args:
        x: what is to be scanned.
        where: (module, name) of functions, the one to be preferred first.

    Example:
        >>> kernel_of(torch.zeros(1), ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan"))
    """
    if x.device.type not in DEVICES or torch.compiler.is_compiling():
        return None
    if x.dtype == torch.float64 or not x.numel():
        return None
    for module, name in where:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except (ImportError, OSError, RuntimeError):  # not there, or built for another torch
            continue
        if callable(found):
            return found
    return None


class _WithoutGradient(torch.autograd.Function):
    """Hands a tensor on whose gradient would be lost; asking for that gradient is refused."""

    @staticmethod
    def forward(ctx: Any, last: Tensor) -> Tensor:
        return last.view_as(last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise ValueError(
            "mamba-ssm's kernel has no gradient of the last state; scan with method='blocked'"
        )


def kernel_selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The selective scan by mamba-ssm, from a state of zeros; None where it is not there.

    Arguments and results are those of :func:`modwright.nn.selective_scan.selective_scan`. The
    kernel's backward takes no gradient of the last state: asking for one is a ValueError.
    """
    kernel = kernel_of(u, *SELECTIVE)
    if kernel is None:
        return None
    rows = (u, dt, B, C, z)
    x, step, b, c, gate = (
        None if t is None else t.float().transpose(1, 2).contiguous() for t in rows
    )
    skip = None if D is None else D.float()
    y, last = kernel(x, step, A.float(), b, c, D=skip, z=gate, return_last_state=True)
    return y.transpose(1, 2).to(u.dtype), _WithoutGradient.apply(last)


def kernel_ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor] | None:
    """The scan of Mamba-2 by mamba-ssm or flash-linear-attention; None where neither is there.

    Arguments and results are those of :func:`modwright.nn.ssd.ssd_scan`, without D.
    """
    kernel = kernel_of(x, SSD, GLA)
    if kernel is None:
        return None
    value, step, A, B, C = (tensor.float() for tensor in (x, dt, A, B, C))
    start = None if h0 is None else h0.float()
    if kernel is kernel_of(x, SSD):
        y, last = kernel(
            value, step, A, B, C, chunk, initial_states=start, return_final_states=True
        )
        return y.to(x.dtype), last
    # A linear attention with one decay a head: C asks, B are keys, and dt x are values.
    asks, keys = (t.repeat_interleave(x.shape[2] // B.shape[2], 2) for t in (C, B))
    y, last = kernel(
        asks,
        keys,
        value * step.unsqueeze(-1),
        g=step * A,
        scale=1.0,
        initial_state=None if start is None else start.transpose(2, 3).contiguous(),
        output_final_state=True,
    )
    return y.to(x.dtype), last.transpose(2, 3)
