"""The scan of Mamba-2 by matrix products: state space duality (arXiv 2405.21060, 2312.00752).

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t',    y_t = h_t C_t + D x_t

for each of H heads with a state (P, N), where A is one number a head: then what a chunk of tokens
gives to itself is a matrix of products C_t B_s, weighted by decays, as in attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modwright.nn.associative_scan import in_chunks, out_of_chunks, segment_sums
from modwright.nn.precision import at_least_float32, full_precision
from modwright.nn.scan_kernels import kernel_ssd_scan

__all__ = ["naive_ssd_scan", "ssd_scan"]


def naive_ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None = None,
    D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, token by token: what :func:`ssd_scan` must give.

    It computes in the precision of its input.
    """
    batch, length, heads, width = x.shape
    h = x.new_zeros(batch, heads, width, B.shape[3]) if h0 is None else h0
    inputs, outputs = (tensor.repeat_interleave(heads // B.shape[2], 2) for tensor in (B, C))
    found = []
    for t in range(length):
        value = dt[:, t].unsqueeze(-1) * x[:, t]
        decay = (dt[:, t] * A).exp()[..., None, None]
        h = decay * h + value.unsqueeze(-1) * inputs[:, t].unsqueeze(2)
        found.append((h * outputs[:, t].unsqueeze(2)).sum(-1))
    y = torch.stack(found, 1) if found else torch.zeros_like(x)
    return (y if D is None else y + D.unsqueeze(1) * x), h


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk: int = 64,
    h0: Tensor | None = None,
    D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan of Mamba-2, and the state after the last token.

    It computes in float32, or float64 where something is; under autocast, too. On a GPU with
    mamba-ssm or flash-linear-attention it is their kernel.

    Args:
        x: input (B, L, H, P).
        dt: steps (B, L, H), positive: after the softplus.
        A: (H,), negative.
        B: how the input enters the states (B, L, G, N); H / G heads share one.
        C: how the states are read (B, L, G, N).
        chunk: tokens whose products are one matrix.
        h0: the state before the first token (B, H, P, N); zeros if None.
        D: what goes past the states (H,).

    Returns:
        y (B, L, H, P) in the type of x, and the last state (B, H, P, N) in float32 or float64.

    Raises:
        ValueError: shapes that do not fit, numbers that are not floating-point, an A that is
            positive (looked at on a CPU), a chunk below 1.

    Example:
        >>> x, dt, A = torch.randn(2, 5, 4, 3), torch.rand(2, 5, 4), -torch.rand(4)
        >>> B, C = torch.randn(2, 2, 5, 2, 6)
        >>> y, h = ssd_scan(x, dt, A, B, C, chunk=2)
        >>> truth, state = naive_ssd_scan(x, dt, A, B, C)
        >>> y.shape, torch.allclose(y, truth, atol=1e-5), torch.allclose(h, state, atol=1e-5)
        (torch.Size([2, 5, 4, 3]), True, True)
    """
    _check(x, A, {"dt": dt, "B": B, "C": C, "h0": h0, "D": D})
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    found = kernel_ssd_scan(x, dt, A, B, C, h0, chunk)
    if found is None:
        wide = at_least_float32(x, dt, A, B, C, h0)
        with full_precision(x):
            u, dt, A, B, C = (tensor.to(wide) for tensor in (x, dt, A, B, C))
            h = u.new_zeros(*u.shape[::2], u.shape[3], B.shape[3]) if h0 is None else h0.to(wide)
            found = _scan(u, dt, A, B, C, h, chunk)
    y, last = found
    if D is not None:
        y = y + D.unsqueeze(1) * x
    return y.to(x.dtype), last


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    length, groups = x.shape[1], B.shape[2]
    if not torch.compiler.is_exporting():
        if length == 1:
            return naive_ssd_scan(x, dt, A, B, C, h0)
        chunk = max(1, min(chunk, length))
    # Axes: batch, groups G, heads of a group R, chunks K, tokens T, width P or states N. Chunks are
    # the last that are not multiplied, and memory is in that order, or an exported graph would ask
    # what divides their number and which stride is the longer one.
    values = in_chunks(dt.unsqueeze(-1) * x, chunk).unflatten(3, (groups, -1))
    values = values.permute(0, 3, 4, 1, 2, 5).contiguous()
    B, C = (in_chunks(t, chunk).permute(0, 3, 1, 2, 4).contiguous().unsqueeze(2) for t in (B, C))
    logarithms = in_chunks(dt * A, chunk).permute(0, 3, 1, 2).contiguous()
    between = _Exponents(logarithms.unflatten(1, (groups, -1)))

    # What tokens of a chunk give to later ones of it.
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decays = between.pairs().masked_fill(later, -torch.inf).exp()
    y = (decays * (C @ B.transpose(4, 5))) @ values

    # What each chunk adds to the state (P, N), the states at their starts, and what they give.
    added = (values * between.to_end().exp().unsqueeze(-1)).transpose(4, 5) @ B
    starts, last = _carry(between.sums[..., -1], added, h0.unflatten(1, (groups, -1)))
    y = y + (C @ starts.transpose(4, 5)) * between.sums.exp().unsqueeze(-1)
    y = y.permute(0, 3, 4, 1, 2, 5).contiguous().flatten(3, 4)
    return out_of_chunks(y, length), last.flatten(1, 2)


class _Exponents:
    """Logarithms of decays (..., T), and their sums between two tokens of a chunk.

    A difference of two large sums has lost the digits of what is between them. So sums are float64
    where that is to be had, each in two parts of the working precision; differences of the first
    parts are exact where they are small. Sums are never negated and exponentiated alone.
    """

    def __init__(self, logarithms: Tensor) -> None:
        there = logarithms.device.type != "mps"
        sums = (logarithms.double() if there else logarithms).cumsum(-1)
        self.sums = sums.to(logarithms.dtype)
        self.rest = (sums - self.sums).to(logarithms.dtype)

    def pairs(self) -> Tensor:
        """(..., T, T): what is behind token s up to token t."""
        large = self.sums.unsqueeze(-1) - self.sums.unsqueeze(-2)
        return large + (self.rest.unsqueeze(-1) - self.rest.unsqueeze(-2))

    def to_end(self) -> Tensor:
        """(..., T): what is behind each token."""
        return (self.sums[..., -1:] - self.sums) + (self.rest[..., -1:] - self.rest)


def _carry(whole: Tensor, added: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk (B, G, R, K, P, N), and after the last (B, G, R, P, N).

    whole (B, G, R, K) are logarithms of the decay over a chunk; added (B, G, R, K, P, N).
    """
    if not torch.compiler.is_exporting():
        states = [h0]
        for decay, more in zip(whole.exp().unbind(3), added.unbind(3)):
            states.append(decay[..., None, None] * states[-1] + more)
        return torch.stack(states, 3)[:, :, :, :-1], states[-1]
    whole = torch.cat([torch.zeros_like(whole[..., :1]), whole], 3)
    index = torch.arange(whole.shape[3], device=whole.device)
    decays = segment_sums(whole, 3).exp() * (index[:, None] >= index)
    all_added = torch.cat([h0.unsqueeze(3), added], 3).flatten(4)
    found = (decays @ all_added).unflatten(4, h0.shape[3:])
    return found[:, :, :, :-1], found[:, :, :, -1]


def _check(x: Tensor, A: Tensor, others: dict[str, Tensor | None]) -> None:
    for name, tensor in {"x": x, "A": A, **others}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, not {tensor.dtype}")
    B = others["B"]
    if x.ndim != 4 or B is None or B.ndim != 4:
        found = f"{x.ndim} and {0 if B is None else B.ndim}"
        raise ValueError(f"x must be (B, L, H, P) and B (B, L, G, N), not of {found} axes")
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    if groups < 1 or heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups")
    right: dict[str, tuple[int, ...]] = {
        "dt": (batch, length, heads),
        "A": (heads,),
        "B": (batch, length, groups, states),
        "C": (batch, length, groups, states),
        "D": (heads,),
        "h0": (batch, heads, width, states),
    }
    for name, tensor in {"A": A, **others}.items():
        if tensor is not None and tuple(tensor.shape) != right[name]:
            raise ValueError(f"{name} must be {right[name]}, not {tuple(tensor.shape)}")
    if A.device.type == "cpu" and not torch.compiler.is_compiling() and bool((A > 0).any()):
        raise ValueError("A must be negative: with a positive one the states grow without bound")
