"""Splitting an MLP into experts and back, and mixtures with fewer or narrower experts.

Axes: d hidden_size, N experts, I neurons of an MLP or of one expert of a mixture, k of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import MixtureOfExperts, Mlp
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.change import (
    Change,
    checked_index,
    place_map,
    require_separable,
)
from modwright.edits.edit import Replace, RevertEdit
from modwright.nn import ExpertShape, FeedForwardShape, MixtureShape
from modwright.nn.channel_mixers.expert_feed_forward import mean_keys

__all__ = ["expert_shape", "keep_expert_neurons", "keep_experts", "merge_experts"]
__all__ += ["replace_mixture", "split_mlp"]


def expert_shape(mlp: Mlp, num_experts: int, top_k: int, **routing: Any) -> ExpertShape:
    """The shape of an MLP once its neurons are split.

    ``routing`` is other fields of :class:`modwright.nn.ExpertShape`. In an MLP without a gate the
    score "gate" means "up".

    Raises:
        InvalidInputError: it is split already, a map of it is stored in another way than as a
            matrix, or a number or word is not valid for it.
    """
    here = mlp.address
    if mlp.experts is not None:
        raise InvalidInputError(
            f"{here} is split into {mlp.num_experts} experts already; merge them first"
        )
    require_separable(mlp, "they cannot be split into experts")
    for projection in mlp.projections().values():
        if projection.is_factored or projection.is_zero_mean:
            stored = type(projection.module).__name__
            raise InvalidInputError(
                f"{projection.address} is a {stored}, which does not split into experts"
            )
    own = {field.name: getattr(mlp.shape, field.name) for field in fields(FeedForwardShape)}
    if routing.get("score") == "gate" and mlp.gate is None:
        routing["score"] = "up"
    with refusing(here):
        return ExpertShape(**own, num_experts=num_experts, top_k=top_k, **routing)


def split_mlp(mlp: Mlp, labels: Tensor, shape: ExpertShape) -> Change:
    """Groups the neurons of an MLP by their labels; what it computes from all of them stays.

    ``labels`` (I,) say the expert of each neuron, and experts of unequal size are refused;
    ``shape`` is from :func:`expert_shape`.

    Example:
        >>> import modwright
        >>> mlp = (model := modwright.open("preset:tiny-llama")).anatomy.blocks[1].mlp
        >>> shape = expert_shape(mlp, num_experts=4, top_k=1)
        >>> result = modwright.apply(model, split_mlp(mlp, torch.arange(96) % 4, shape))
        >>> modwright.Anatomy.of(result).blocks[1].mlp
        Mlp(blocks.1.mlp: gated, 96 wide, silu, 4 experts of 24, top 1 by avg_key)
    """
    here, inner = mlp.address, mlp.intermediate_size
    sizes = torch.bincount(labels, minlength=shape.num_experts)
    if len(labels) != inner or bool((sizes != shape.expert_size).any()):
        raise InvalidInputError(
            f"{here}: {inner} labels with {shape.expert_size} of each of {shape.num_experts} "
            f"experts are needed, not {sizes.tolist()}"
        )
    order = labels.argsort(stable=True).to(mlp.up.weight.device)
    new = _reordered(mlp, order)
    tensors = {f"{at}.{name}": value for at, named in new.items() for name, value in named.items()}
    if shape.score == "avg_key":
        keys = f"{here}.{'up' if mlp.gate is None else 'gate'}"
        tensors[f"{here}.avg_key"] = mean_keys(
            shape, new[keys]["weight"], new[f"{here}.down"]["weight"]
        )
    edit = Replace(here, "expert_feed_forward", shape.to_dict())
    return Change((edit,), {f"{here}.order": order, **tensors})


def merge_experts(mlp: Mlp, restore_order: bool = True, activation: str | None = None) -> Change:
    """Makes an ordinary MLP from experts, with every neuron at work again.

    With ``restore_order`` neurons return to the order that they had before they were grouped, so
    an MLP that was not trained since is the old one, bit for bit. One that is not split is refused,
    and one whose activation normalizes within each expert.

    Args:
        activation: that of the family's own MLPs, where it is known: if it is this MLP's, too, the
            family's own module stands there again. Otherwise the MLP keeps its activation, and
            is the family's own if the stock model has the same.
    """
    if mlp.experts is None:
        raise InvalidInputError(
            f"{mlp.address} is not split into experts, so there is nothing to merge"
        )
    require_separable(mlp, "experts cannot be merged")
    order, shape = mlp.buffers()["order"], mlp.shape
    place = order.argsort() if restore_order else torch.arange(len(order), device=order.device)
    maps = [place_map(address, stored) for address, stored in _reordered(mlp, place).items()]
    if activation == mlp.activation and shape.activation_kwargs is None:
        return sum(maps, Change((RevertEdit(mlp.address),)))
    own = {field.name: getattr(shape, field.name) for field in fields(FeedForwardShape)}
    edit = Replace(mlp.address, "feed_forward", FeedForwardShape(**own).to_dict())
    return sum((Change((), one.tensors) for one in maps), Change((edit,)))


def _reordered(mlp: Mlp, place: Tensor) -> dict[str, dict[str, Tensor]]:
    """What each map stores, by its address, with neuron ``place[j]`` at place j."""
    return {
        projection.address: {
            name: value[place] if role != "down" else value[:, place] if value.ndim > 1 else value
            for name, value in projection.parameters().items()
        }
        for role, projection in mlp.projections().items()
    }


def replace_mixture(
    mixture: MixtureOfExperts,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    router: Tensor | None = None,
    top_k: int | None = None,
) -> Change:
    """Gives a mixture new experts, all of one width k.

    Args:
        gate, up: one (k, d) per expert.
        down: one (d, k) per expert.
        router: (N, d); None for the one that stands there.
        top_k: experts of a position; None for as many as before.

    Raises:
        InvalidInputError: widths or counts that do not go together.
    """
    here, scores = mixture.address, mixture.router.weight if router is None else router
    widths = {len(m) for m in (*gate, *up)} | {m.shape[1] for m in down}
    if len(widths) != 1 or not len(gate) == len(up) == len(down) == len(scores):
        raise InvalidInputError(
            f"{here}: all experts must have one width, and the router a row for each; "
            f"widths {sorted(widths)}, {len(down)} experts, {len(scores)} rows"
        )
    if widths != {mixture.intermediate_size}:
        require_separable(mixture)
    used = mixture.top_k if top_k is None else top_k
    with refusing(here):
        shape = MixtureShape(
            mixture.hidden_size,
            widths.pop(),
            len(scores),
            used,
            mixture.activation,
            activation_kwargs=mixture.shape.activation_kwargs,
        )
    tensors = {f"{here}.router.weight": scores}
    for role, maps in (("gate", gate), ("up", up), ("down", down)):
        tensors |= {f"{here}.experts.{i}.{role}.weight": weight for i, weight in enumerate(maps)}
    return Change((Replace(here, "mixture", shape.to_dict()),), tensors)


def keep_experts(mixture: MixtureOfExperts, index: Sequence[int] | Tensor) -> Change:
    """Keeps the experts ``index``, in that order; as many as work on a position must be left."""
    kept = checked_index(index, mixture.num_experts, f"{mixture.address}: experts")
    if len(kept) < mixture.top_k:
        raise InvalidInputError(
            f"{mixture.address}: {mixture.top_k} experts work on a position, so at least as many "
            f"must stay; {len(kept)} were asked for"
        )
    chosen = [mixture.experts[i] for i in kept.tolist()]
    return replace_mixture(
        mixture,
        [expert.gate.weight for expert in chosen],
        [expert.up.weight for expert in chosen],
        [expert.down.weight for expert in chosen],
        mixture.router.weight[kept],
    )


def keep_expert_neurons(
    mixture: MixtureOfExperts, index: Sequence[Sequence[int] | Tensor] | Tensor
) -> Change:
    """Narrows every expert to its own neurons ``index`` (N, k); nothing makes up for the rest."""
    here = mixture.address
    count = len(index) if isinstance(index, Sequence) or getattr(index, "ndim", 0) == 2 else 0
    if count != mixture.num_experts:
        raise InvalidInputError(
            f"{here}: neurons of {count} experts; there are {mixture.num_experts}"
        )
    size = mixture.intermediate_size
    rows = [checked_index(n, size, f"{here}: neurons of expert {i}") for i, n in enumerate(index)]
    pairs = list(zip(mixture.experts, rows))
    return replace_mixture(
        mixture,
        [expert.gate.weight[row] for expert, row in pairs],
        [expert.up.weight[row] for expert, row in pairs],
        [expert.down.weight[:, row] for expert, row in pairs],
    )
