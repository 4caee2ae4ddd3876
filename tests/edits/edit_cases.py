"""Every kind of edit, as a change for any family, with the dense model that it must equal.

A case says what is cut away (``change``) and how a dense model is made to do the same (``zero``):
the weights that carry what is cut are set to zero through the anatomy's views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Attention, Mlp, Projection
from modwright.edits import (
    Change,
    factorize,
    keep_heads,
    keep_neurons,
    remove,
    replace_attention,
)

__all__ = ["CASES", "KINDS", "Case", "attention_of", "drop_neurons", "mlp_of"]


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        change: the edit for an anatomy.
        zero: makes a dense model compute the same, in place.
        plain: stock transformers loads the result, in every family; None where families differ.
    """

    change: Callable[[Anatomy], Change]
    zero: Callable[[Anatomy], None]
    plain: bool | None = False


CASES: dict[str, Case] = {}


def attention_of(anatomy: Anatomy, index: int) -> Attention:
    found = anatomy.blocks[index].attention
    assert found is not None
    return found


def mlp_of(anatomy: Anatomy, index: int) -> Any:
    """An MLP, or the mixture of experts in its place."""
    found = anatomy.blocks[index].mlp
    assert found is not None
    return found


def thin_map(anatomy: Anatomy) -> Projection:
    """A linear layer of its own that can become a factor pair."""
    mlp = mlp_of(anatomy, 1)
    return mlp.down if isinstance(mlp, Mlp) else attention_of(anatomy, 3).o


# What a dense model must lose


def _silence(anatomy: Anatomy, index: int, role: str) -> None:
    """The sublayer adds nothing to the stream."""
    part = getattr(anatomy.blocks[index], role)
    for out in (part.projections()[name] for name in part.writes_residual):
        for name, tensor in out.parameters().items():
            out.write(name, torch.zeros_like(tensor))


def _drop_heads(attention: Attention, kept: list[int]) -> None:
    weight = attention.o.weight.clone()
    width = attention.shape.v_head_dim
    for head in set(range(attention.num_heads)) - set(kept):
        weight[:, head * width : (head + 1) * width] = 0
    attention.o.write("weight", weight)


def drop_neurons(mlp: Any, kept: list[int]) -> None:
    for down in (mlp.projections()[name] for name in mlp.writes_residual):
        weight = down.weight.clone()
        weight[:, sorted(set(range(mlp.intermediate_size)) - set(kept))] = 0
        down.write("weight", weight)


def _nothing(anatomy: Anatomy) -> None:
    """The edit changes no function."""


# Which heads and channels are kept, for any number of heads and groups


def half_the_groups(attention: Attention) -> list[int]:
    """The heads of the first half of the key/value heads; of the query heads where there is one."""
    owner = attention.kv_of_head()
    if attention.num_kv_heads == 1:
        return list(range((attention.num_heads + 1) // 2))
    return torch.nonzero(owner < attention.num_kv_heads // 2).flatten().tolist()


def thinner_groups(attention: Attention) -> list[int]:
    """The same number of heads from every group; every other head where groups have one."""
    size = attention.num_heads // attention.num_kv_heads
    if size == 1:
        return list(range(1, attention.num_heads, 2))
    return [h for h in range(attention.num_heads) if h % size < size - 1]


def all_but_first(attention: Attention) -> list[int]:
    """Groups of unequal size, where there are groups."""
    return list(range(1, attention.num_heads))


def kept_pairs(attention: Attention) -> Tensor:
    """Channels of a head that stay: rotary pair 1 and one unrotated pair of channels go."""
    shape = attention.shape
    turned = shape.rotary_dim // 2
    plain = (shape.qk_head_dim - shape.rotary_dim) // 2
    pairs = [(j, j + turned) for j in range(turned)]
    pairs += [(shape.rotary_dim + j, shape.rotary_dim + plain + j) for j in range(plain)]
    gone = {1, turned + 1} if turned else {1}
    left = [pair for i, pair in enumerate(pairs) if i not in gone]
    return torch.tensor([a for a, _ in left] + [b for _, b in left])


def _rows(bias: Tensor | None, heads: int, kept: Tensor) -> Tensor | None:
    return None if bias is None else bias.view(heads, -1)[:, kept]


def _kept_channels(attention: Attention, equal: bool) -> tuple[Tensor, Tensor]:
    """Of queries and keys, and of values: as many, or one less than there were."""
    shape = attention.shape
    qk = kept_pairs(attention) if attention.q_norm is None else torch.arange(shape.qk_head_dim)
    return qk, torch.arange(len(qk) if equal else shape.v_head_dim - 1)


def narrow_heads(attention: Attention, equal: bool = False) -> Change:
    """Queries and keys lose rotary pairs, values lose other channels, to equal widths or not."""
    shape = attention.shape
    turning = attention.rotary_index()
    qk, v = _kept_channels(attention, equal)
    return replace_attention(
        attention,
        q=attention.read_q()[:, qk],
        k=attention.read_k()[:, qk],
        v=attention.read_v()[:, v],
        o=attention.read_o()[:, v],
        biases={
            "q": _rows(attention.q.bias, shape.num_heads, qk),
            "k": _rows(attention.k.bias, shape.num_kv_heads, qk),
            "v": _rows(attention.v.bias, shape.num_kv_heads, v),
        },
        rotary_index=None if turning is None else turning[:, qk],
    )


def _zero_channels(attention: Attention, equal: bool = False) -> None:
    shape = attention.shape
    qk, v = _kept_channels(attention, equal)
    for projection, heads in ((attention.q, shape.num_heads), (attention.k, shape.num_kv_heads)):
        for name, tensor in projection.parameters().items():
            cut = torch.zeros_like(tensor).view(heads, shape.qk_head_dim, -1)
            cut[:, qk] = tensor.reshape(heads, shape.qk_head_dim, -1)[:, qk]
            projection.write(name, cut.view_as(tensor))
    weight = attention.o.weight.clone().view(-1, shape.num_heads, shape.v_head_dim)
    weight[..., len(v) :] = 0
    attention.o.write("weight", weight.flatten(1))


def _low_rank(linear: Projection) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(linear.weight.double(), full_matrices=False)
    return (u[:, :8] * s[:8]).float(), v[:8].float()


# The table

ALL = range(4)


def _over(*roles: tuple[int, str]) -> Case:
    def change(a: Anatomy) -> Change:
        parts = (getattr(a.blocks[i], role) for i, role in roles)
        return sum((remove(part) for part in parts), Change())

    def zero(a: Anatomy) -> None:
        for i, role in roles:
            _silence(a, i, role)

    return Case(change, zero)


def _heads(choose: Callable[[Attention], list[int]], *indices: int, plain: bool | None) -> Case:
    def change(a: Anatomy) -> Change:
        chosen = [attention_of(a, i) for i in indices]
        return sum((keep_heads(x, choose(x)) for x in chosen), Change())

    def zero(a: Anatomy) -> None:
        for i in indices:
            _drop_heads(attention_of(a, i), choose(attention_of(a, i)))

    return Case(change, zero, plain)


def _neurons(*indices: int, plain: bool | None) -> Case:
    def kept(mlp: Any) -> list[int]:
        return list(range(mlp.intermediate_size))[::2]

    def change(a: Anatomy) -> Change:
        chosen = [mlp_of(a, i) for i in indices]
        return sum((keep_neurons(m, kept(m)) for m in chosen), Change())

    def zero(a: Anatomy) -> None:
        for i in indices:
            drop_neurons(mlp_of(a, i), kept(mlp_of(a, i)))

    return Case(change, zero, plain)


def _narrow_change(a: Anatomy) -> Change:
    """Every layer alike: the config can say it of the MLPs, and must not say it of the heads."""
    heads = sum((narrow_heads(attention_of(a, i), equal=True) for i in ALL), Change())
    return heads + sum((keep_neurons(mlp_of(a, i), range(40)) for i in ALL), Change())


def _narrow_zero(a: Anatomy) -> None:
    for i in ALL:
        _zero_channels(attention_of(a, i), equal=True)
        drop_neurons(mlp_of(a, i), list(range(40)))


def _several_change(a: Anatomy) -> Change:
    return (
        remove(attention_of(a, 0))
        + keep_heads(attention_of(a, 1), all_but_first(attention_of(a, 1)))
        + factorize(thin_map(a), *_low_rank(thin_map(a)))
        + remove(mlp_of(a, 2))
        + narrow_heads(attention_of(a, 2))
        + keep_neurons(mlp_of(a, 3), range(5, 30))
    )


def _several_zero(a: Anatomy) -> None:
    outer, inner = _low_rank(thin_map(a))
    _silence(a, 0, "attention")
    _drop_heads(attention_of(a, 1), all_but_first(attention_of(a, 1)))
    thin_map(a).write("weight", outer @ inner)
    _silence(a, 2, "mlp")
    _zero_channels(attention_of(a, 2))
    drop_neurons(mlp_of(a, 3), list(range(5, 30)))


def _low_rank_zero(a: Anatomy) -> None:
    outer, inner = _low_rank(thin_map(a))
    thin_map(a).write("weight", outer @ inner)


CASES["identity"] = Case(lambda a: Change(), _nothing, plain=True)
CASES["no-attention-0"] = _over((0, "attention"))
CASES["no-attention-0-2"] = _over((0, "attention"), (2, "attention"))
CASES["no-attention-last"] = _over((3, "attention"))
CASES["no-attention-at-all"] = _over(*((i, "attention") for i in ALL))
CASES["no-mlp-1"] = _over((1, "mlp"))
CASES["empty-block-1"] = _over((1, "attention"), (1, "mlp"))
CASES["half-the-groups"] = _heads(half_the_groups, 1, plain=False)
CASES["half-the-groups-everywhere"] = _heads(half_the_groups, *ALL, plain=None)
CASES["thinner-groups"] = _heads(thinner_groups, 2, plain=False)
CASES["uneven-heads"] = _heads(all_but_first, 1, plain=False)
CASES["same-attention"] = Case(
    lambda a: replace_attention(attention_of(a, 1)), _nothing, plain=None
)
CASES["narrow-heads"] = Case(
    lambda a: narrow_heads(attention_of(a, 0)), lambda a: _zero_channels(attention_of(a, 0))
)
CASES["narrow-everywhere"] = Case(_narrow_change, _narrow_zero, plain=None)
CASES["half-ffn-1"] = _neurons(1, plain=False)
CASES["half-ffn-everywhere"] = _neurons(*ALL, plain=True)
CASES["low-rank-down"] = Case(
    lambda a: factorize(thin_map(a), *_low_rank(thin_map(a))), _low_rank_zero
)
CASES["several"] = Case(_several_change, _several_zero)

KINDS = (
    "no-attention-at-all",
    "half-the-groups-everywhere",
    "half-ffn-everywhere",
    "narrow-everywhere",
    "several",
)
"""One case of each kind, for promises that do not depend on what exactly is cut: parts that go,
widths that a config may say, widths that it may not, and every part of modwright's at once."""
