"""The selective scan in blocks that stay in the cache, with its own backward (arXiv 2312.00752).

Each token multiplies a state (E, N) by decays and adds to it. The states of a whole sequence are N
times its size, so they are never kept: forward keeps the one at the start of each chunk, and
backward computes the states of a chunk anew from it. What a chunk works on is small enough for the
cache, and its tokens are taken one by one, in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modwright.nn.precision import full_precision

__all__ = ["blocked_scan"]

BUFFER = 2**18
"""Numbers in a buffer of the states of one chunk: 1 MB in float32, what an L2 cache holds."""


def blocked_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, E) and the last state (B, E, N); gradients go to everything that comes in.

    u, dt (B, L, E), A (E, N), B, C (B, L, N), h0 (B, E, N): of one floating-point type. Gradients
    of gradients are refused.

    Example:
        >>> u, b = torch.ones(1, 3, 2), torch.ones(1, 3, 1)
        >>> y, h = blocked_scan(u, u, torch.zeros(2, 1), b, b, torch.zeros(1, 2, 1), chunk=2)
        >>> y[0, :, 0].tolist(), h.flatten().tolist()
        ([1.0, 2.0, 3.0], [3.0, 3.0])
    """
    given = _Inputs(u, dt, A, B, C)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (u, dt, A, B, C, h0)):
        y, last = _BlockedScan.apply(u, dt, A, B, C, h0, chunk)
        return y, last
    with torch.no_grad():
        return _forward(given, h0, chunk, None)


class _BlockedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *inputs, h0, chunk = given
        u = inputs[0]
        starts = h0.new_empty(-(-u.shape[1] // chunk), *h0.shape)
        y, last = _forward(_Inputs(*inputs), h0, chunk, starts)
        ctx.save_for_backward(*inputs, starts)
        ctx.chunk = chunk
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(grad_y):
            return _BlockedScan.gradients(ctx, grad_y, grad_last)

    @staticmethod
    def gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        given = _Inputs(*inputs)
        gradients = _Inputs(*(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in inputs))
        grad_h0 = grad_last.clone()
        for tile in _tiles(given, ctx.chunk, buffers=3):
            carry = grad_last[tile.rows, tile.channels]
            for index in reversed(range(len(starts))):
                tokens = slice(index * ctx.chunk, (index + 1) * ctx.chunk)
                start = starts[index, tile.rows, tile.channels]
                carry = _backward_chunk(tile, tokens, given, gradients, (grad_y, start, carry))
            grad_h0[tile.rows, tile.channels] = carry
        return (gradients.u, gradients.dt, gradients.A, gradients.B, gradients.C, grad_h0, None)


@dataclass(frozen=True)
class _Inputs:
    """What a scan reads; or the gradients of it."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


@dataclass(frozen=True)
class _Tile:
    """Rows of the batch and channels that are scanned together.

    Attributes:
        buffers: (T, b, e, N) each, for what has an entry for each state of a chunk.
        tokens: the same memory as ``buffers``, token by token.
    """

    rows: slice
    channels: slice
    buffers: tuple[Tensor, ...]
    tokens: tuple[tuple[Tensor, ...], ...]

    def wide(self, tensor: Tensor, tokens: slice) -> Tensor:
        """(B, L, E) -> (T, b, e)."""
        return tensor[self.rows, tokens, self.channels].transpose(0, 1)

    def shared(self, tensor: Tensor, tokens: slice) -> Tensor:
        """(B, L, N) -> (T, b, N): what all channels share."""
        return tensor[self.rows, tokens].transpose(0, 1)


def _tiles(given: _Inputs, chunk: int, buffers: int) -> Iterator[_Tile]:
    """All rows and channels; on a CPU, as many at once as leave a buffer in the cache."""
    batch, length, width = given.u.shape
    states = given.A.shape[1]
    rows, channels, chunk = max(1, batch), max(1, width), min(chunk, length)
    if given.u.device.type == "cpu":
        room = max(1, BUFFER // max(1, chunk * states))
        channels = min(channels, room)
        rows = min(rows, max(1, room // channels))
    for row in range(0, batch, rows):
        for channel in range(0, width, channels):
            size = (chunk, min(rows, batch - row), min(channels, width - channel), states)
            made = tuple(given.u.new_empty(size) for _ in range(buffers))
            tokens = tuple(buffer.unbind(0) for buffer in made)
            yield _Tile(slice(row, row + rows), slice(channel, channel + channels), made, tokens)


def _states(tile: _Tile, tokens: slice, given: _Inputs, start: Tensor) -> int:
    """Fills the first two buffers with the decays and the states of a chunk; gives its length."""
    dt = tile.wide(given.dt, tokens)
    count = len(dt)
    decays, states = (buffer[:count] for buffer in tile.buffers[:2])
    torch.mul(dt.unsqueeze(-1), given.A[tile.channels], out=decays).exp_()
    added = (dt * tile.wide(given.u, tokens)).unsqueeze(-1)
    torch.mul(added, tile.shared(given.B, tokens).unsqueeze(2), out=states)
    state = start
    for decay, here in zip(tile.tokens[0][:count], tile.tokens[1]):
        state = here.addcmul_(decay, state)
    return count


def _forward(
    given: _Inputs, h0: Tensor, chunk: int, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs and last state; the states at the start of chunks go into ``starts``."""
    y, last = given.u.new_empty(given.u.shape), h0.clone()
    for tile in _tiles(given, chunk, buffers=2):
        state = last[tile.rows, tile.channels]
        for index, begin in enumerate(range(0, given.u.shape[1], chunk)):
            if starts is not None:
                starts[index, tile.rows, tile.channels] = state
            tokens = slice(begin, begin + chunk)
            count = _states(tile, tokens, given, state)
            state = tile.tokens[1][count - 1].clone()
            read = tile.shared(given.C, tokens).unsqueeze(-1)
            tile.wide(y, tokens).copy_((tile.buffers[1][:count] @ read).squeeze(-1))
        last[tile.rows, tile.channels] = state
    return y, last


def _backward_chunk(
    tile: _Tile,
    tokens: slice,
    given: _Inputs,
    gradients: _Inputs,
    ends: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Adds the gradients of one chunk to ``gradients``; gives that of the state at its start.

    ``ends``: the gradient of all outputs, the state at the start of the chunk, the gradient of that
    at its end.
    """
    grad_y, start, carry = tile.wide(ends[0], tokens), ends[1], ends[2]
    count = _states(tile, tokens, given, start)
    decays, states, grads = (buffer[:count] for buffer in tile.buffers)
    u, dt = tile.wide(given.u, tokens), tile.wide(given.dt, tokens)
    B, C = tile.shared(given.B, tokens), tile.shared(given.C, tokens)
    A = given.A[tile.channels]
    tile.shared(gradients.C, tokens).add_((grad_y.unsqueeze(2) @ states).squeeze(2))

    torch.mul(grad_y.unsqueeze(-1), C.unsqueeze(2), out=grads)
    by_token = tile.tokens[2][:count]
    by_token[-1].add_(carry)
    for index in range(count - 2, -1, -1):
        by_token[index].addcmul_(tile.tokens[0][index + 1], by_token[index + 1])
    carry = decays[0] * grads[0]

    tile.shared(gradients.B, tokens).add_(((dt * u).unsqueeze(2) @ grads).squeeze(2))
    of_added = (grads @ B.unsqueeze(-1)).squeeze(-1)
    tile.wide(gradients.u, tokens).copy_(of_added * dt)
    # The exponent dt A has the gradient g h' a, where h' is the state before.
    exponents = grads.mul_(decays)
    exponents[1:].mul_(states[:-1])
    exponents[0].mul_(start)
    gradients.A[tile.channels].add_(torch.mul(exponents, dt.unsqueeze(-1), out=states).sum((0, 1)))
    tile.wide(gradients.dt, tokens).copy_((of_added * u).add_(exponents.mul_(A).sum(-1)))
    return carry
