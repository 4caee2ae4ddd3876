"""A recurrence whose parameters depend on the input (arXiv 2312.00752).

    h_t = exp(dt_t A) * h_(t-1) + dt_t u_t B_t',    y_t = h_t C_t + D u_t

for each of E channels with N states: A decays (E, N), the step dt is a channel's own, B and C are
shared by all channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.nn.associative_scan import associative_scan
from modwright.nn.blocked_scan import blocked_scan
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.scan_kernels import kernel_selective_scan

__all__ = ["METHODS", "naive_selective_scan", "selective_scan"]

METHODS = ("auto", "blocked", "sequential", "associative")


def naive_selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    h0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, token by token: what :func:`selective_scan` must give.

    It computes in the precision of its input and keeps all states for backward.
    """
    h = u.new_zeros(u.shape[0], *A.shape) if h0 is None else h0
    outputs = []
    for t in range(u.shape[1]):
        added = (dt[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(1)
        h = (dt[:, t].unsqueeze(-1) * A).exp() * h + added
        outputs.append((h * C[:, t].unsqueeze(1)).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(u)
    return _finish(y, u, D, z), h


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    h0: Tensor | None = None,
    chunk: int = 32,
    method: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The selective scan of arXiv 2312.00752, and the state after the last token.

    It computes in float32, or float64 where something is; under autocast, too.

    Args:
        u: input (B, L, E).
        dt: steps (B, L, E), positive: after the softplus.
        A: (E, N), negative.
        B: how the input enters the states (B, L, N).
        C: how the states are read (B, L, N).
        D: what goes past the states (E,).
        z: gate (B, L, E): outputs are multiplied by SiLU(z).
        h0: the state before the first token (B, E, N); zeros if None.
        chunk: tokens of which "blocked" computes the states together; 16 to 64 are quick.
        method: "blocked" keeps only the inputs and one state a chunk for backward. "associative"
            has no loop over the length. "sequential" is :func:`naive_selective_scan`. "auto" is
            "associative" in a graph (``torch.compile``, ``torch.export``) and on the meta device,
            the kernel of mamba-ssm on a GPU where it is installed, and else "blocked".

    Returns:
        y (B, L, E) in the type of u, and the last state (B, E, N) in float32 or float64.

    Raises:
        ValueError: shapes that do not fit, numbers that are not floating-point, an A that is
            positive (looked at on a CPU), a chunk below 1, an unknown method.

    Example:
        >>> u, dt, A = torch.randn(2, 5, 8), torch.rand(2, 5, 8), -torch.rand(8, 4)
        >>> B, C = torch.randn(2, 2, 5, 4)
        >>> y, h = selective_scan(u, dt, A, B, C)
        >>> first, kept = selective_scan(u[:, :3], dt[:, :3], A, B[:, :3], C[:, :3])
        >>> rest, last = selective_scan(u[:, 3:], dt[:, 3:], A, B[:, 3:], C[:, 3:], h0=kept)
        >>> torch.allclose(torch.cat([first, rest], 1), y, atol=1e-6), h.shape
        (True, torch.Size([2, 8, 4]))
    """
    _check_numbers(u=u, dt=dt, A=A, B=B, C=C, D=D, z=z, h0=h0)
    _check_shapes(u, A, {"dt": dt, "B": B, "C": C, "D": D, "z": z, "h0": h0})
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid values: {', '.join(METHODS)}")
    if method == "auto" and h0 is None:
        found = kernel_selective_scan(u, dt, A, B, C, D, z)
        if found is not None:
            return found
    wide = at_least_float32(u, dt, A, B, C, D, z, h0)
    with full_precision(u):
        x, dt, A, B, C = (tensor.to(wide) for tensor in (u, dt, A, B, C))
        h = x.new_zeros(x.shape[0], *A.shape) if h0 is None else h0.to(wide)
        y, last = _run(x, dt, A, B, C, h, chunk, _chosen(method, x))
        y = _finish(y, x, None if D is None else D.to(wide), None if z is None else z.to(wide))
    return y.to(u.dtype), last


def _chosen(method: str, x: Tensor) -> str:
    """What "auto" stands for here; a single token is one step, however it is asked for."""
    if torch.compiler.is_exporting():
        return "associative" if method == "auto" else method
    if x.shape[1] == 1:
        return "sequential"
    if method != "auto":
        return method
    in_graph = torch.compiler.is_compiling() or x.device.type == "meta"
    return "associative" if in_graph else "blocked"


def _run(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, chunk: int, method: str
) -> tuple[Tensor, Tensor]:
    if method == "blocked":
        return blocked_scan(u, dt, A, B, C, h, chunk)
    if method == "associative":
        return associative_scan(u, dt, A, B, C, h)
    return naive_selective_scan(u, dt, A, B, C, h0=h)


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D * u
    return y if z is None else y * F.silu(z)


def _check_numbers(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, not {tensor.dtype}")


def _check_shapes(u: Tensor, A: Tensor, others: dict[str, Tensor | None]) -> None:
    if u.ndim != 3 or A.ndim != 2 or A.shape[0] != u.shape[2] or A.shape[1] < 1:
        found = f"{tuple(u.shape)} and {tuple(A.shape)}"
        raise ValueError(f"u must be (B, L, E) and A (E, N) with N at least 1, not {found}")
    (batch, length, width), states = u.shape, A.shape[1]
    right: dict[str, tuple[int, ...]] = {
        "dt": (batch, length, width),
        "B": (batch, length, states),
        "C": (batch, length, states),
        "D": (width,),
        "z": (batch, length, width),
        "h0": (batch, width, states),
    }
    for name, tensor in others.items():
        if tensor is not None and tuple(tensor.shape) != right[name]:
            raise ValueError(f"{name} must be {right[name]}, not {tuple(tensor.shape)}")
    if A.device.type == "cpu" and not torch.compiler.is_compiling() and bool((A > 0).any()):
        raise ValueError("A must be negative: with a positive one the states grow without bound")
