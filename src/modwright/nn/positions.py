"""Rotary positions on gathered pairs.

Axes: b batch, h heads, t positions, d channels of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gather_rotary", "rotate", "rotate_half"]


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1), where x1 and x2 are the halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns every pair (j, j + d/2) of ``x`` (..., d) by its angle.

    ``cos`` and ``sin`` broadcast to (..., r) with r <= d: channels from r on are left as they are
    (partial rotary).
    """
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return x * cos + rotate_half(x) * sin
    turned, rest = x[..., :width], x[..., width:]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), dim=-1)


def gather_rotary(cos: Tensor, sin: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Picks, for each key/value head, the angles of the channels that the head kept.

    Args:
        cos: (b, t, r) as the model computes it for all r rotary channels.
        sin: (b, t, r).
        index: (k, d) integers in [0, r]; the value r stands for "not rotated" (cos 1, sin 0).

    Returns:
        cos and sin of shape (b, t, k, d).
    """
    flat, shape = index.reshape(-1), (*cos.shape[:2], *index.shape)
    cos, sin = F.pad(cos, (0, 1), value=1.0), F.pad(sin, (0, 1), value=0.0)
    return cos.index_select(-1, flat).view(shape), sin.index_select(-1, flat).view(shape)
