"""Which tokens are real, read from masks that were made for attentions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = ["packed", "padding_in"]

_HIDDEN = -1e3
"""What is added to scores of hidden tokens is at most this; no bias of a near token is."""


def padding_in(
    mask: Any, sequences: int, length: int, seen: int = 0, *, static: bool = False
) -> Tensor | None:
    """Which of the new tokens are real, read from a mask that was made for attentions.

    A mask (B, S) says it of all tokens. One of scores (B, heads, L, S), boolean or additive, says
    it where a token sees itself: on the diagonal. Its last row would not do, as windows hide tokens
    there, and the columns of a static cache that are still empty.

    Args:
        mask: of any of these forms, a block mask of flex attention, or None.
        sequences: B.
        length: new tokens L.
        seen: tokens of the cache before them.
        static: columns stand for all positions of a static cache, so new ones begin at ``seen``;
            else they are the last ones.

    Returns:
        (B, L), True where a token is real; None without a mask.

    Raises:
        InvalidInputError: a mask of another form, for fewer tokens, or of packed sequences.

    Example:
        >>> visible = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1]]).bool().view(1, 1, 3, 3)
        >>> padding_in(visible, 1, 3).tolist()  # the first of three tokens is padding
        [[False, True, True]]
    """
    if mask is None:
        return None
    shape = tuple(getattr(mask, "shape", ()))
    if len(shape) not in (2, 4) or shape[-1] < length:
        windows = "; it is that of moved windows, and those of other blocks stay"
        raise InvalidInputError(
            f"an attention mask of shape {shape} does not tell which of {length} tokens are real; "
            f"({sequences}, tokens) does{windows if len(shape) == 3 else ''}"
        )
    first = seen if static and shape[-1] >= seen + length else shape[-1] - length
    if not isinstance(mask, Tensor):  # a block mask holds a function of its indices
        near = mask.kv_num_blocks.device
        rows, at = torch.arange(sequences, device=near)[:, None], torch.arange(length, device=near)
        told = mask.mask_mod(rows, torch.zeros_like(rows), at, at + first)
        return torch.as_tensor(told).expand(sequences, length)
    new = mask[..., first : first + length]
    if len(shape) == 2:
        return (new != 0).expand(sequences, length)
    visible = _visible(new[:, 0, -length:])
    if visible.shape[1] == 1:  # one row stands for all
        return visible[:, 0].expand(sequences, length)
    _check_one_sequence(visible)
    return visible.diagonal(dim1=1, dim2=2).expand(sequences, length)


def _visible(mask: Tensor) -> Tensor:
    """Booleans of a mask that is added to scores, or holds truth values."""
    return mask > _HIDDEN if mask.is_floating_point() else mask != 0


def _check_one_sequence(visible: Tensor) -> None:
    """Refuses rows of several sequences: a real token does not see the real one before it there.

    (B, L, L): what each new token sees of them. It is not asked where a graph is traced.
    """
    if torch.compiler.is_compiling() or visible.is_meta:
        return
    real, before = visible.diagonal(dim1=1, dim2=2), visible.diagonal(-1, dim1=1, dim2=2)
    if bool((real[:, 1:] & real[:, :-1] & ~before).any()):
        raise packed()


def packed() -> InvalidInputError:
    """The refusal of rows that hold several sequences."""
    return InvalidInputError(
        "a row of several packed sequences cannot be told by a padding mask, and a state would run "
        "on from one to the next; pad the sequences instead"
    )
