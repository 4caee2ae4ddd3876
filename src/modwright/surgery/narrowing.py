"""Narrows one MLP, and picks channels of one attention, from second moments of what they read.

Axes (torch layout, weights [out, in]): H query heads, K key/value heads, D channels of a head, k
kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Attention, Mlp
from modwright.edits import Change, replace_mlp
from modwright.surgery.decompositions import (
    moment_roots,
    nystrom_mlp,
    select_query_key,
    select_rotary_pairs,
    value_output,
)

__all__ = [
    "folded_bias",
    "narrow_mlp",
    "narrow_values",
    "nystrom_error",
    "pick_channels",
    "take_channels",
]


def narrow_mlp(mlp: Mlp, moments: Tensor, keep: int, ridge: float) -> tuple[Change, dict[str, Any]]:
    """Keeps ``keep`` neurons, and the down map that makes up best for the others."""
    index, down = nystrom_mlp(mlp.down.weight, moments, keep, ridge)
    gate = mlp.gate
    change = replace_mlp(
        mlp,
        up=mlp.up.weight[index],
        down=down,
        gate=None if gate is None else gate.weight[index],
        up_bias=None if mlp.up.bias is None else mlp.up.bias[index],
        gate_bias=None if gate is None or gate.bias is None else gate.bias[index],
    )
    error = nystrom_error(mlp.down.weight.to(moments), moments, index, down)
    return change, {"intermediate_size": keep, "mlp_error": error}


def pick_channels(attention: Attention, moments: Tensor, mean: Tensor, keep: int) -> Tensor:
    """(K, keep) channels for each key/value head."""
    q_moments = _channel_moments(attention.read_q(), attention.q.bias, moments, mean)
    k_moments = _channel_moments(attention.read_k(), attention.k.bias, moments, mean)
    owner = attention.kv_of_head().cpu()
    picked = []
    for head in range(attention.num_kv_heads):
        q_here, k_here = q_moments[owner == head], k_moments[head]
        if attention.shape.rotary_dim:
            pairs = _channel_pairs(attention, (q_here * k_here).sum(0))
            picked.append(select_rotary_pairs(q_here, k_here, keep, pairs))
        else:
            picked.append(select_query_key(q_here, k_here, keep).sort().values)
    return torch.stack(picked)


def narrow_values(
    attention: Attention, moments: Tensor, keep: int, ridge: float, jointly: bool
) -> tuple[Tensor, Tensor, float]:
    """Values (K, keep, d) and outputs (H, keep, d) of fewer channels, and the error they make.

    ``jointly`` takes the optimum over all query heads that share a value.
    """
    root, inverse_root = moment_roots(moments, ridge)
    values, outputs = attention.read_v().to(moments), attention.read_o().to(moments)
    owner = attention.kv_of_head().cpu()
    new_values = []
    new_outputs = torch.empty(len(owner), keep, outputs.shape[-1], dtype=torch.float64)
    error = 0.0
    for head, value in enumerate(values):
        mine = owner == head
        shared = int(mine.sum()) > 1
        joint = jointly or not shared
        new_value, new_output, lost = value_output(
            value, outputs[mine], root, inverse_root, keep, joint
        )
        new_values.append(new_value)
        new_outputs[mine] = new_output
        error += lost
    return torch.stack(new_values), new_outputs, error


def nystrom_error(down: Tensor, moments: Tensor, index: Tensor, new_down: Tensor) -> float:
    """Mean squared error of the MLP's output, from the moments alone."""
    wide = torch.zeros_like(down)
    wide[:, index] = new_down.to(down.dtype)
    off = down - wide
    return float(((off @ moments) * off).sum())


def _channel_moments(weight: Tensor, bias: Tensor | None, moments: Tensor, mean: Tensor) -> Tensor:
    """(heads, D): mean square of every channel of x W^T + b, from the moments of x."""
    w = weight.to(moments)
    square = ((w @ moments) * w).sum(-1)
    if bias is not None:
        b = bias.to(moments).view(w.shape[:2])
        square = square + 2 * b * (w @ mean) + b.square()
    return square.clamp(min=0)


def _channel_pairs(attention: Attention, scores: Tensor) -> Tensor:
    """(D/2, 2): channels that must go together.

    Rotary channels pair with the one that they turn with. Channels that do not turn may pair at
    will: they are taken two by two in the order of their scores.
    """
    shape = attention.shape
    if shape.rotary_gather:
        first = torch.arange(shape.qk_head_dim // 2)
        return torch.stack((first, first + shape.qk_head_dim // 2), dim=1)
    first = torch.arange(shape.rotary_dim // 2)
    turning = torch.stack((first, first + shape.rotary_dim // 2), dim=1)
    rest = torch.arange(shape.rotary_dim, shape.qk_head_dim)
    by_score = rest[scores[rest].argsort(descending=True, stable=True)]
    return torch.cat((turning, by_score.view(-1, 2)))


def take_channels(attention: Attention, index: Tensor) -> dict[str, Tensor]:
    """Queries and keys with the channels ``index`` (K, keep), and the rotary channel of each."""
    q, k = attention.read_q(), attention.read_k()
    index = index.to(q.device)
    per_query = index[attention.kv_of_head()]
    new = {
        "q": q.gather(1, per_query[..., None].expand(-1, -1, q.shape[-1])),
        "k": k.gather(1, index[..., None].expand(-1, -1, k.shape[-1])),
    }
    rotary = attention.rotary_index()
    if rotary is not None:
        new["rotary_index"] = rotary.gather(1, index)
    return new


def folded_bias(attention: Attention) -> dict[str, Tensor | None]:
    """The value bias moved into the output bias: attention weights sum to one, so that is exact."""
    bias = attention.v.bias
    if bias is None:
        return {}
    shape = attention.shape
    per_head = bias.double().view(shape.num_kv_heads, -1)[attention.kv_of_head()]  # (H, D)
    moved = torch.einsum("hd,hde->e", per_head, attention.read_o().double())
    if attention.o.bias is not None:
        moved = moved + attention.o.bias.double()
    return {"v": None, "o": moved}
