"""The selective scan without a loop over the length (arXiv 2312.00752).

For graphs: what is traced at one length runs at any other. A chunk of 32 tokens is scanned in five
doublings, all chunks at once; then the states at their ends are a sequence that is 32 times
shorter. After two such levels the ends that are left meet in one matrix. Decays are products of
numbers between 0 and 1, and no exponent is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["associative_scan", "in_chunks", "out_of_chunks", "segment_sums"]

CHUNK = 32
LEVELS = 2


def segment_sums(x: Tensor, dim: int) -> Tensor:
    """Sums of x over (j, k] for all k (at ``dim``) and j (behind it); 0 where j is not below k.

    Example:
        >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), 0).tolist()
        [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [6.0, 4.0, 0.0]]
    """
    index = torch.arange(x.shape[dim], device=x.device)
    later = index[:, None] > index
    later = later.view(*later.shape, *(1,) * (x.ndim - 1 - dim))
    return (x.unsqueeze(dim + 1) * later).cumsum(dim)


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, L, ...) -> (B, chunks, chunk, ...), with zeros behind the last token.

    While a graph is exported there are one or two chunks more than needed, and tokens are gathered:
    for a graph a size of 1 or a padding of 0 is a case of its own, and it would hold no other.
    """
    length = x.shape[1]
    if not torch.compiler.is_exporting():
        chunks = (length + chunk - 1) // chunk
        more = x.new_zeros(x.shape[0], chunks * chunk - length, *x.shape[2:])
        return torch.cat([x, more], 1).unflatten(1, (chunks, chunk))
    starts = torch.arange(length // chunk + 2, device=x.device) * chunk
    index = starts.unsqueeze(1) + torch.arange(chunk, device=x.device)
    real = (index < length).view(*index.shape, *(1,) * (x.ndim - 2))
    return x[:, index.clamp(max=length - 1)] * real


def out_of_chunks(x: Tensor, length: int) -> Tensor:
    """(B, chunks, chunk, ...) -> (B, length, ...)."""
    if not torch.compiler.is_exporting():
        return x.flatten(1, 2)[:, :length]
    index = torch.arange(length, device=x.device)
    return x[:, index // x.shape[2], index % x.shape[2]]


def associative_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, E) and the last state (B, E, N).

    u, dt (B, L, E), A (E, N), B, C (B, L, N), h0 (B, E, N). It keeps some fifteen times the states
    of all tokens, for backward.

    Example:
        >>> u, b = torch.ones(1, 3, 2), torch.ones(1, 3, 1)
        >>> y, h = associative_scan(u, u, torch.zeros(2, 1), b, b, torch.zeros(1, 2, 1))
        >>> y[0, :, 0].tolist(), h.flatten().tolist()
        ([1.0, 2.0, 3.0], [3.0, 3.0])
    """
    added = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    states, last = _scan(dt, added, A, h0, LEVELS)
    return (states @ C.unsqueeze(-1)).squeeze(-1), last


def _scan(dt: Tensor, added: Tensor, A: Tensor, h0: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The states after each token, and after all: dt (B, L, E), added (B, L, E, N)."""
    if not levels:
        return _at_once(dt, added, A, h0)
    length = dt.shape[1]
    dt, states = (in_chunks(tensor, CHUNK) for tensor in (dt, added))
    decays = (dt.unsqueeze(-1) * A).exp()
    shift = 1
    while shift < CHUNK:
        own = decays[:, :, shift:]
        states = torch.cat(
            [states[:, :, :shift], states[:, :, shift:] + own * states[:, :, :-shift]], 2
        )
        decays = torch.cat([decays[:, :, :shift], own * decays[:, :, :-shift]], 2)
        shift *= 2
    ends, last = _scan(dt.sum(2), states[:, :, -1], A, h0, levels - 1)
    starts = torch.cat([h0.unsqueeze(1), ends], 1)[:, :-1]
    states = states + decays * starts.unsqueeze(2)
    return out_of_chunks(states, length), last


def _at_once(dt: Tensor, added: Tensor, A: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """The same by one matrix of all decays between two tokens, for few tokens."""
    index = torch.arange(dt.shape[1], device=dt.device)
    seen = (index[:, None] >= index).view(1, *(dt.shape[1],) * 2, 1, 1)
    decays = (segment_sums(dt, 1).unsqueeze(-1) * A).exp() * seen
    states = (decays * added.unsqueeze(1)).sum(2)
    states = states + (dt.cumsum(1).unsqueeze(-1) * A).exp() * h0.unsqueeze(1)
    return states, torch.cat([h0.unsqueeze(1), states], 1)[:, -1]
