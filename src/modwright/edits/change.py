"""Structural changes to one part, as edits and the new tensors that go with them.

Axes: d hidden_size, H query heads, K key/value heads, D channels of a head, I neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Attention, Block, Mlp, Projection
from modwright.anatomy.coerce import address_of
from modwright.anatomy.views import Linear, MixtureOfExperts, Sublayer
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.edit import Edit, Remove, ReorderBlocks, Replace, split_address
from modwright.nn import AttentionShape

__all__ = ["Change", "arrange", "checked_index", "factorize", "keep_heads", "lacks"]
__all__ += ["map_sizes", "place_map", "remove", "replace_attention", "replace_mlp"]
__all__ += ["require_separable", "resize", "untie"]


@dataclass(frozen=True)
class Change:
    """Edits, and values by the address of a parameter ("blocks.3.mlp.up.weight").

    Masks, by address too, are true where a number of the parameter stays; the others become zero.
    """

    edits: tuple[Edit, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __radd__(self, other: int) -> Change:
        """So that ``sum`` of changes is the change of all."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: Change) -> Change:
        twice = self.tensors.keys() & other.tensors.keys()
        if twice:
            raise InvalidInputError(f"two changes write {sorted(twice)[0]}")
        masks = dict(self.masks)
        for address, keep in other.masks.items():
            masks[address] = keep & masks.get(address, keep)
        return Change((*self.edits, *other.edits), {**self.tensors, **other.tensors}, masks)


def remove(part: Block | Sublayer | str, drop_norm: bool = False) -> Change:
    """Takes a block, an attention or an MLP out of the model, given as a part or by its address.

    ``drop_norm``: in a post-norm block, the norm goes with an attention or MLP.
    """
    address = address_of(part)
    return Change((Remove(address, drop_norm and bool(split_address(address)[1])),))


def arrange(order: Sequence[int]) -> Change:
    """Lets the blocks stand in this order; a block may stand twice, one left out is gone."""
    return Change((ReorderBlocks(order),))  # type: ignore[arg-type]


def map_sizes(stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a linear layer, or a factor pair where a ``reduce`` is stored, is built with."""
    sizes = {
        "in_features": stored.get("reduce", stored["weight"]).shape[1],
        "out_features": stored["weight"].shape[0],
        "bias": "bias" in stored,
    }
    return sizes | ({"rank": stored["reduce"].shape[0]} if "reduce" in stored else {})


def place_map(address: str, stored: Mapping[str, Tensor | None], part: str = "linear") -> Change:
    """A map that stores these parameters at an address; None is none."""
    held = {name: tensor for name, tensor in stored.items() if tensor is not None}
    edit = Replace(address, "factors" if "reduce" in held else part, map_sizes(held))
    return Change((edit,), {f"{address}.{name}": tensor for name, tensor in held.items()})


def untie(anatomy: Anatomy, weight: Tensor | None = None, bias: Tensor | None = None) -> Change:
    """Gives the head a table of its own, (vocabulary, d); a model without a head is refused."""
    if "head" not in anatomy.outer:
        raise InvalidInputError("the model has no head over its vocabulary")
    given = {"weight": weight, "bias": bias}
    new = {name: tensor for name, tensor in given.items() if tensor is not None}
    return place_map("head", {**anatomy.outer["head"].parameters(), **new})


def require_separable(part: Mlp | MixtureOfExperts, what: str = "neurons cannot go") -> None:
    """Refuses an MLP or a mixture whose neurons depend on each other."""
    if not part.separable:
        raise InvalidInputError(
            f"{part.address}: the activation {part.activation!r} normalizes over the neurons, so "
            f"{what} without changing the others"
        )


def checked_index(index: Sequence[int] | Sequence[bool] | Tensor, size: int, what: str) -> Tensor:
    """What is kept, as a tensor of indices: at least one, each of them there, none twice.

    ``index`` holds indices, or is a mask with one truth value for each of ``size``.

    Example:
        >>> checked_index([2, 0], 3, "heads"), checked_index([True, False, True], 3, "heads")
        (tensor([2, 0]), tensor([0, 2]))
    """
    wanted = f"{what}: a list of indices or a mask of {size} truth values is needed, not"
    mixed = isinstance(index, list | tuple) and len({isinstance(i, bool) for i in index}) > 1
    try:
        given = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInputError(f"{wanted} {index!r}") from None
    if given.dim() != 1 or mixed:
        raise InvalidInputError(f"{wanted} {index!r}")
    if given.dtype == torch.bool and len(given):
        if len(given) != size:
            raise InvalidInputError(
                f"{what}: the mask has {len(given)} truth values, and there are {size}"
            )
        given = given.nonzero().flatten()
    if not len(given):
        raise InvalidInputError(f"{what}: nothing would be left; remove the part instead")
    if given.is_floating_point() or given.is_complex():
        raise InvalidInputError(f"{wanted} {given.dtype} numbers".replace("torch.", ""))
    kept = given.long()
    if int(kept.min()) < 0 or int(kept.max()) >= size:
        raise InvalidInputError(f"{what}: indices must lie between 0 and {size - 1}")
    if len(kept.unique()) != len(kept):
        raise InvalidInputError(f"{what}: an index is repeated")
    return kept


def lacks(part: object, what: str) -> InvalidInputError:
    """The refusal of a part that has no heads, no neurons or the like."""
    if isinstance(part, str):
        return InvalidInputError(
            f"{part!r} is an address; give the part itself: anatomy.part({part!r})"
        )
    address = getattr(part, "address", "")
    where = f"{address}: " if address else ""
    if what == "heads" and (blocker := getattr(part, "blocker", "")):
        return InvalidInputError(f"{where}heads cannot go one by one: {blocker}")
    kind = type(getattr(part, "module", part) if getattr(part, "is_opaque", False) else part)
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return InvalidInputError(f"{where}{article} {kind.__name__} has no {what}")


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
    width = len(up)
    if width != mlp.intermediate_size:
        require_separable(mlp)
    given = {"up": (up, up_bias), "gate": (gate, gate_bias), "down": (down, mlp.down.bias)}
    change = Change()
    for role, projection in mlp.projections().items():
        weight, bias = given[role]
        if weight is None or weight.shape[role == "down"] != width:
            raise InvalidInputError(
                f"{mlp.address}: {role} does not have the width {width} of the others"
            )
        change += place_map(projection.address, {"weight": weight, "bias": bias})
    return change


def factorize(projection: Projection | Linear, outer: Tensor, inner: Tensor) -> Change:
    """Stores a linear layer as ``outer (out, r) @ inner (r, in)``; its bias is kept.

    It is one of a sublayer, or one that stands between stages.

    Raises:
        InvalidInputError: the rank saves nothing, or the map is a slice of a fused one, or no
            linear layer.
    """
    if (found := projection.linear) is None:
        raise lacks(projection, "two factors")
    projection = found
    here, rank = projection.address, inner.shape[0]
    width, height = projection.in_features, projection.out_features
    if (tuple(outer.shape), tuple(inner.shape)) != ((height, rank), (rank, width)):
        raise InvalidInputError(
            f"{here}: outer is {tuple(outer.shape)} and inner {tuple(inner.shape)}; "
            f"valid are {(height, rank)} and {(rank, width)}, for a rank of your choice in place "
            f"of {rank}"
        )
    largest = (width * height - 1) // (width + height)
    if not 1 <= rank <= largest:
        raise InvalidInputError(
            f"{here}: rank {rank} saves nothing; valid ranks are 1 to {largest}"
        )
    if projection.rows is not None:
        raise InvalidInputError(f"{here} is a slice of a fused map; replace the attention first")
    return place_map(here, {"weight": outer, "reduce": inner, "bias": projection.bias})


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
    if getattr(attention, "blocker", ""):
        raise lacks(attention, "heads")
    old, here = attention.shape, attention.address
    weights = {
        "q": attention.read_q() if q is None else q,
        "k": attention.read_k() if k is None else k,
        "v": attention.read_v() if v is None else v,
        "o": attention.read_o() if o is None else o,
    }
    new_biases = {role: p.bias for role, p in attention.projections().items()} | dict(biases or {})
    (num_heads, width, hidden_size), num_kv_heads = weights["q"].shape, len(weights["k"])
    if kv_index is None and (num_heads, num_kv_heads) == (old.num_heads, old.num_kv_heads):
        kv_index = attention.kv_of_head()
    if kv_index is not None and not len(kv_index) % num_kv_heads:
        grouped = torch.arange(len(kv_index)) // (len(kv_index) // num_kv_heads)
        kv_index = None if bool((kv_index == grouped).all()) else kv_index  # no map is needed
    index = attention.rotary_index() if rotary_index is None else rotary_index
    own = torch.arange(width).clamp(max=old.rotary_dim)
    if index is not None and index.shape[1] == width >= old.rotary_dim:
        index = None if bool((index == own).all()) else index  # no gathering is needed
    with refusing(here):
        shape = replace(
            old,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qk_head_dim=width,
            v_head_dim=weights["v"].shape[1],
            rotary_gather=index is not None,
            kv_map=kv_index is not None,
            biases="".join(role for role in "qkvo" if new_biases[role] is not None),
        )
    _check_shapes(here, shape, weights, index)
    flat = {role: weight.reshape(-1, weight.shape[-1]) for role, weight in weights.items()}
    tensors = {f"{role}.weight": w.T if role == "o" else w for role, w in flat.items()}
    tensors |= {f"{role}.bias": b.reshape(-1) for role, b in new_biases.items() if b is not None}
    tables = {"rotary_index": index, "kv_index": kv_index}
    tensors |= {name: table for name, table in tables.items() if table is not None}
    for role, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            tensors[f"{role}.weight"] = norm.parameters()["weight"]
    named = {f"{here}.{name}": tensor for name, tensor in tensors.items()}
    return Change((Replace(here, "attention", shape.to_dict()),), named)


def _check_shapes(
    address: str, shape: AttentionShape, weights: Mapping[str, Tensor], index: Tensor | None
) -> None:
    width, values, size = shape.qk_head_dim, shape.v_head_dim, shape.hidden_size
    wanted: dict[str, tuple[int, ...]] = {
        "q": (shape.num_heads, width, size),
        "k": (shape.num_kv_heads, width, size),
        "v": (shape.num_kv_heads, values, size),
        "o": (shape.num_heads, values, size),
        "rotary_index": (shape.num_kv_heads, width),
    }
    for role, given in {**weights, "rotary_index": index}.items():
        if given is not None and tuple(given.shape) != wanted[role]:
            raise InvalidInputError(
                f"{address}.{role}: shape {tuple(given.shape)}, needs {wanted[role]}"
            )
    if index is None:
        return
    half = shape.rotary_dim // 2
    first, second = index.chunk(2, dim=-1)
    turned = (first >= 0) & (first < half) & (second == first + half)
    still = (first == shape.rotary_dim) & (second == shape.rotary_dim)
    if not bool((turned | still).all()):
        raise InvalidInputError(
            f"{address}.rotary_index: channels j and j + {width // 2} of a head must "
            f"be a rotary pair (r, r + {half}), or both {shape.rotary_dim} for no rotation"
        )


def keep_heads(attention: Attention, heads: Sequence[int] | Tensor) -> Change:
    """Keeps the query heads ``heads``, indices or a mask, and the key/value heads that they read.

    A key/value head goes when all its query heads go. Groups may end up with unequal sizes; then
    each query head carries an explicit index.
    """
    if getattr(attention, "num_heads", None) is None:
        raise lacks(attention, "heads")
    kept = checked_index(heads, attention.num_heads, f"{attention.address}: heads").sort().values
    owner = attention.kv_of_head()[kept]
    kv = owner.unique(sorted=True)
    index = attention.rotary_index()
    rows = {"q": (kept, attention.num_heads)} | dict.fromkeys("kv", (kv, attention.num_kv_heads))
    biases = {role: attention.projections()[role].bias for role in rows}
    return replace_attention(
        attention,
        q=attention.read_q()[kept],
        k=attention.read_k()[kv],
        v=attention.read_v()[kv],
        o=attention.read_o()[kept],
        biases={
            role: None if bias is None else bias.view(rows[role][1], -1)[rows[role][0]]
            for role, bias in biases.items()
        },
        rotary_index=None if index is None else index[kv],
        kv_index=torch.searchsorted(kv, owner),
    )


def resize(sublayer: Sublayer, values: Mapping[str, Mapping[str, Tensor]]) -> Change:
    """Gives a sublayer new parameters of other shapes; factor pairs stay factor pairs.

    An attention becomes modwright's own. ``values`` are, by role, parameters in place of the old
    ones or beside them: weight, reduce (of a factor pair), bias.
    """
    if sublayer.blocker:
        raise lacks(sublayer, "heads")
    if (part := sublayer.resized_as) is None:
        raise InvalidInputError(
            f"{sublayer.address}: a {type(sublayer).__name__} cannot be given other widths"
        )
    stored = {
        role: {**projection.parameters(), **values.get(role, {})}
        for role, projection in sublayer.projections().items()
    }
    maps = [_refitted(p.address, stored[role]) for role, p in sublayer.projections().items()]
    if not part:
        return sum(maps, Change())
    own: Any = sublayer
    shape = replace(
        own.shape,
        hidden_size=map_sizes(stored[sublayer.reads_residual[0]])["in_features"],
        biases="".join(role[0] for role, named in stored.items() if "bias" in named),
    )
    # One edit for the part, and one for each factor pair in it.
    inner = (m if "rank" in m.edits[0].to_dict()["kwargs"] else Change((), m.tensors) for m in maps)
    return sum(inner, Change((Replace(sublayer.address, part, shape.to_dict()),)))


def _refitted(address: str, stored: Mapping[str, Tensor]) -> Change:
    """A linear layer of its own that stores these parameters."""
    if "reduce" in stored and len(stored["reduce"]) >= stored["reduce"].shape[1]:
        dense = stored["weight"].double() @ stored["reduce"].double()  # the rank saves nothing
        bias = {name: tensor for name, tensor in stored.items() if name == "bias"}
        stored = {"weight": dense.to(stored["weight"].dtype), **bias}
    return place_map(address, stored)
