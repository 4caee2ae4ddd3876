"""Structural changes to one part, as edits and the new tensors that go with them.

Methods are composed of these; they know how a change is expressed, and no method does.
Axes: d hidden_size, H query heads, K key/value heads, D channels of a head, I neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Attention, Block, MixtureOfExperts, Mlp, Projection
from modwright.anatomy.coerce import address_of
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.edit import Edit, Remove, ReorderBlocks, Replace
from modwright.edits.indices import checked_index
from modwright.nn import AttentionShape

__all__ = [
    "Change",
    "arrange",
    "factorize",
    "keep_heads",
    "keep_neurons",
    "remove",
    "replace_attention",
    "replace_mlp",
    "require_separable",
    "untie",
]


@dataclass(frozen=True)
class Change:
    """Edits, and values by the address of a parameter ("blocks.3.mlp.up.weight")."""

    edits: tuple[Edit, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __radd__(self, other: int) -> Change:
        """So that ``sum`` of changes is the change of all."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: Change) -> Change:
        twice = self.tensors.keys() & other.tensors.keys()
        if twice:
            raise InvalidInputError(f"two changes write {sorted(twice)[0]}")
        return Change((*self.edits, *other.edits), {**self.tensors, **other.tensors})


def remove(part: Block | Sublayer | str, drop_norm: bool = False) -> Change:
    """Takes a block, an attention or an MLP out of the model, given as a part or by its address."""
    return Change((Remove(address_of(part), drop_norm),))


def arrange(order: Sequence[int]) -> Change:
    """Lets the blocks stand in this order; a block may stand twice, one left out is gone."""
    return Change((ReorderBlocks(order),))  # type: ignore[arg-type]


def untie(anatomy: Anatomy, weight: Tensor | None = None, bias: Tensor | None = None) -> Change:
    """Gives the head a table of its own.

    Args:
        weight: (vocabulary, d) of the new head; None for the one that it has.
        bias: (vocabulary,), for a head that gets one.

    Raises:
        InvalidInputError: the model has no head.
    """
    head = anatomy.outer.get("head")
    if head is None:
        raise InvalidInputError("the model has no head over its vocabulary")
    old = head.parameters()
    weight = old["weight"] if weight is None else weight
    bias = old.get("bias") if bias is None else bias
    kwargs = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": bias is not None,
    }
    tensors = {"head.weight": weight} | ({} if bias is None else {"head.bias": bias})
    return Change((Replace("head", "linear", kwargs),), tensors)


def require_separable(part: Mlp | MixtureOfExperts, what: str = "neurons cannot go") -> None:
    """Refuses an MLP or a mixture whose neurons depend on each other."""
    if not part.separable:
        raise InvalidInputError(
            f"{part.address}: the activation {part.activation!r} normalizes over the neurons, so "
            f"{what} without changing the others"
        )


@singledispatch
def keep_neurons(part: Sublayer, index: Sequence[int] | Tensor) -> Change:
    """Narrows an MLP to the neurons ``index``, in that order; nothing makes up for the others.

    ``index`` may be a mask with one truth value per neuron, too.

    In a mixture of experts, every expert keeps its neurons of these numbers.

    Raises:
        InvalidInputError: what is narrowed has no neurons, they depend on each other, or an index
            is not there.
    """
    raise _without(part, "neurons")


def _without(part: object, what: str) -> InvalidInputError:
    """The refusal of something that has no neurons or heads."""
    if isinstance(part, str):
        return InvalidInputError(
            f"{part!r} is an address; give the part itself: anatomy.part({part!r})"
        )
    where = f"{part.address}: " if isinstance(part, Sublayer | Projection | Block) else ""
    return InvalidInputError(f"{where}a {type(part).__name__} has no {what}")


@keep_neurons.register
def _(mlp: Mlp, index: Sequence[int] | Tensor) -> Change:
    kept = checked_index(index, mlp.intermediate_size, f"{mlp.address}: neurons")
    return replace_mlp(
        mlp,
        up=mlp.up.weight[kept],
        down=mlp.down.weight[:, kept],
        gate=None if mlp.gate is None else mlp.gate.weight[kept],
        up_bias=None if mlp.up.bias is None else mlp.up.bias[kept],
        gate_bias=None if mlp.gate is None or mlp.gate.bias is None else mlp.gate.bias[kept],
    )


def replace_mlp(
    mlp: Mlp,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Change:
    """Gives an MLP new weights of a new width k.

    Args:
        up, gate: (k, d); ``gate`` for a gated MLP.
        down: (d, k). The bias of the down projection is kept.
        up_bias, gate_bias: (k,).
    """
    if mlp.experts is not None:
        raise InvalidInputError(
            f"{mlp.address} is split into {mlp.num_experts} experts; merge them first"
        )
    width = up.shape[0]
    if width != mlp.intermediate_size:
        require_separable(mlp)
    given = {"up": (up, up_bias), "gate": (gate, gate_bias), "down": (down, mlp.down.bias)}
    change = Change()
    for role, projection in mlp.projections().items():
        weight, bias = given[role]
        if weight is None or weight.shape[0 if role != "down" else 1] != width:
            raise InvalidInputError(
                f"{mlp.address}: {role} does not have the width {width} of the others"
            )
        change += _linear(projection, weight, bias, width)
    return change


def _linear(projection: Projection, weight: Tensor, bias: Tensor | None, width: int) -> Change:
    kwargs = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": bias is not None,
    }
    tensors = {f"{projection.address}.weight": weight}
    if bias is not None:
        tensors[f"{projection.address}.bias"] = bias
    return Change((Replace(projection.address, "linear", kwargs),), tensors)


def factorize(projection: Projection, outer: Tensor, inner: Tensor) -> Change:
    """Stores a linear layer as ``outer (out, r) @ inner (r, in)``; its bias is kept.

    Raises:
        InvalidInputError: the rank saves nothing, or the map is a slice of a fused one.
    """
    rank = inner.shape[0]
    wanted = (projection.out_features, rank), (rank, projection.in_features)
    if (tuple(outer.shape), tuple(inner.shape)) != wanted:
        raise InvalidInputError(
            f"{projection.address}: outer is {tuple(outer.shape)} and inner {tuple(inner.shape)}; "
            f"valid are {wanted[0]} and {wanted[1]}, for a rank of your choice in place of {rank}"
        )
    largest = (projection.in_features * projection.out_features - 1) // (
        projection.in_features + projection.out_features
    )
    if not 1 <= rank <= largest:
        raise InvalidInputError(
            f"{projection.address}: rank {rank} saves nothing; valid ranks are 1 to {largest}"
        )
    if projection.rows is not None:
        raise InvalidInputError(
            f"{projection.address} is a slice of a fused map; replace the attention first"
        )
    kwargs = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "rank": rank,
        "bias": projection.bias is not None,
    }
    tensors = {f"{projection.address}.weight": outer, f"{projection.address}.reduce": inner}
    if projection.bias is not None:
        tensors[f"{projection.address}.bias"] = projection.bias
    return Change((Replace(projection.address, "factors", kwargs),), tensors)


def replace_attention(
    attention: Attention,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    o: Tensor | None = None,
    biases: Mapping[str, Tensor | None] | None = None,
    rotary_index: Tensor | None = None,
    kv_index: Tensor | None = None,
) -> Change:
    """Puts modwright's attention in place, with new weights; what is not given stays as it is.

    Args:
        q: (H, D, d). k: (K, D, d). v: (K, E, d). o: (H, E, d). All four for a new width d.
        biases: role -> (H, D), (K, D), (K, E) or (d,); None takes a bias away.
        rotary_index: (K, D) rotary channel of each kept channel, for models with rotary positions:
            channel j of a head and channel j + D / 2 are a pair that turns together.
        kv_index: (H,) key/value head of each query head; where it is not given and the heads stay,
            the map stays, else heads belong to key/value heads in groups of equal size.

    Raises:
        InvalidInputError: shapes that do not go together.
    """
    old = attention.shape
    weights = {
        "q": attention.read_q() if q is None else q,
        "k": attention.read_k() if k is None else k,
        "v": attention.read_v() if v is None else v,
        "o": attention.read_o() if o is None else o,
    }
    new_biases = {role: p.bias for role, p in attention.projections().items()} | dict(biases or {})
    here = attention.address
    num_heads, num_kv_heads = weights["q"].shape[0], weights["k"].shape[0]
    if kv_index is None and (num_heads, num_kv_heads) == (old.num_heads, old.num_kv_heads):
        kv_index = attention.kv_of_head()
    if kv_index is not None and _is_grouped(kv_index, num_kv_heads):
        kv_index = None
    index = attention.rotary_index() if rotary_index is None else rotary_index
    gather = index is not None and not _is_plain(index, old.rotary_dim, weights["q"].shape[1])
    with refusing(here):
        shape = replace(
            old,
            hidden_size=weights["q"].shape[2],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qk_head_dim=weights["q"].shape[1],
            v_head_dim=weights["v"].shape[1],
            rotary_gather=gather,
            kv_map=kv_index is not None,
            biases="".join(role for role in "qkvo" if new_biases[role] is not None),
        )
    _check_widths(here, shape, weights)
    if gather and index is not None:
        _check_pairs(here, shape, index)
    tensors = {
        f"{here}.{role}.weight": (
            w.reshape(-1, w.shape[-1]).T if role == "o" else w.reshape(-1, w.shape[-1])
        )
        for role, w in weights.items()
    }
    for role, bias in new_biases.items():
        if bias is not None:
            tensors[f"{here}.{role}.bias"] = bias.reshape(-1)
    if gather and index is not None:
        tensors[f"{here}.rotary_index"] = index
    if kv_index is not None:
        tensors[f"{here}.kv_index"] = kv_index
    for role, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            tensors[f"{here}.{role}.weight"] = norm.parameters()["weight"]
    return Change((Replace(here, "attention", shape.to_dict()),), tensors)


def _is_plain(index: Tensor, rotary_dim: int, width: int) -> bool:
    own = torch.arange(width).clamp(max=rotary_dim)
    return index.shape[1] == width and bool((index == own).all()) and width >= rotary_dim


def _is_grouped(kv_index: Tensor, num_kv_heads: int) -> bool:
    """Heads read key/value heads in order and in groups of equal size, so no map is needed."""
    size, rest = divmod(len(kv_index), num_kv_heads)
    return not rest and bool((kv_index == torch.arange(len(kv_index)) // size).all())


def _check_pairs(address: str, shape: AttentionShape, index: Tensor) -> None:
    if index.shape != (shape.num_kv_heads, shape.qk_head_dim):
        wanted = (shape.num_kv_heads, shape.qk_head_dim)
        raise InvalidInputError(
            f"{address}.rotary_index: shape {tuple(index.shape)}, needs {wanted}"
        )
    half = shape.rotary_dim // 2
    first, second = index.chunk(2, dim=-1)
    turned = (first >= 0) & (first < half) & (second == first + half)
    still = (first == shape.rotary_dim) & (second == shape.rotary_dim)
    if not bool((turned | still).all()):
        raise InvalidInputError(
            f"{address}.rotary_index: channels j and j + {shape.qk_head_dim // 2} of a head must "
            f"be a rotary pair (r, r + {half}), or both {shape.rotary_dim} for no rotation"
        )


def _check_widths(address: str, shape: AttentionShape, weights: Mapping[str, Tensor]) -> None:
    wanted = {
        "q": (shape.num_heads, shape.qk_head_dim, shape.hidden_size),
        "k": (shape.num_kv_heads, shape.qk_head_dim, shape.hidden_size),
        "v": (shape.num_kv_heads, shape.v_head_dim, shape.hidden_size),
        "o": (shape.num_heads, shape.v_head_dim, shape.hidden_size),
    }
    for role, size in wanted.items():
        if tuple(weights[role].shape) != size:
            raise InvalidInputError(
                f"{address}.{role}: shape {tuple(weights[role].shape)}, needs {size}"
            )


def keep_heads(attention: Attention, heads: Sequence[int] | Tensor) -> Change:
    """Keeps the query heads ``heads``, indices or a mask, and the key/value heads that they read.

    A key/value head goes when all its query heads go. Groups may end up with unequal sizes; then
    each query head carries an explicit index.
    """
    if not isinstance(attention, Attention):
        raise _without(attention, "heads")
    kept = checked_index(heads, attention.num_heads, f"{attention.address}: heads").sort().values
    owner = attention.kv_of_head()[kept]
    kv = owner.unique(sorted=True)
    index = attention.rotary_index()

    def rows(role: str, which: Tensor, size: int) -> Tensor | None:
        bias = attention.projections()[role].bias
        return None if bias is None else bias.view(size, -1)[which]

    return replace_attention(
        attention,
        q=attention.read_q()[kept],
        k=attention.read_k()[kv],
        v=attention.read_v()[kv],
        o=attention.read_o()[kept],
        biases={
            "q": rows("q", kept, attention.num_heads),
            "k": rows("k", kv, attention.num_kv_heads),
            "v": rows("v", kv, attention.num_kv_heads),
        },
        rotary_index=None if index is None else index[kv],
        kv_index=torch.searchsorted(kv, owner),
    )
