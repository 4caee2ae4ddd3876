"""Splitting an MLP into experts and putting it together again, as edits and values.

Axes: d hidden_size, I neurons, N experts.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Mlp, Projection
from modwright.anatomy.projection import PointwiseProjection
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.change import Change, require_separable
from modwright.edits.edit import Replace, RevertEdit
from modwright.nn import ExpertShape, FeedForwardShape
from modwright.nn.channel_mixers.expert_feed_forward import mean_keys

__all__ = ["expert_shape", "merge_experts", "split_mlp"]


def expert_shape(mlp: Mlp, num_experts: int, top_k: int, **routing: Any) -> ExpertShape:
    """The shape of an MLP once its neurons are split.

    Args:
        routing: other fields of :class:`modwright.nn.ExpertShape`. A score "gate" means the keys'
            pre-activations: in an MLP without a gate those of the up map.

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
        if type(projection) not in (Projection, PointwiseProjection):
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

    Args:
        labels: (I,) expert of each neuron, every expert as often.
        shape: from :func:`expert_shape`.

    Raises:
        InvalidInputError: experts of unequal size.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, apply
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> mlp = anatomy.blocks[1].mlp
        >>> shape = expert_shape(mlp, num_experts=4, top_k=1)
        >>> plan = Plan.of(anatomy, "by hand", split_mlp(mlp, torch.arange(96) % 4, shape))
        >>> modwright.Anatomy.of(apply(anatomy.model, plan).model).blocks[1].mlp
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
    tensors = {f"{here}.order": order, **_reordered(mlp, order)}
    if shape.score == "avg_key":
        keys = "up" if mlp.gate is None else "gate"
        means = mean_keys(shape, tensors[f"{here}.{keys}.weight"], tensors[f"{here}.down.weight"])
        tensors[f"{here}.avg_key"] = means
    return Change((Replace(here, "expert_feed_forward", shape.to_dict()),), tensors)


def merge_experts(mlp: Mlp, restore_order: bool = True) -> Change:
    """Makes an MLP of the family's own kind from experts, with every neuron at work again.

    Args:
        restore_order: neurons return to the places that they had before they were grouped, so an
            MLP that was not trained since is the old one, bit for bit.

    Raises:
        InvalidInputError: it is not split into experts.
    """
    here = mlp.address
    if mlp.experts is None:
        raise InvalidInputError(f"{here} is not split into experts, so there is nothing to merge")
    order = mlp.buffers()["order"]
    place = order.argsort() if restore_order else torch.arange(len(order), device=order.device)
    maps = tuple(
        Replace(
            projection.address,
            "linear",
            {
                "in_features": projection.in_features,
                "out_features": projection.out_features,
                "bias": projection.bias is not None,
            },
        )
        for projection in mlp.projections().values()
    )
    return Change((RevertEdit(here), *maps), _reordered(mlp, place))


def _reordered(mlp: Mlp, place: Tensor) -> dict[str, Tensor]:
    """Weights and biases by address, with neuron ``place[j]`` at place j."""
    tensors = {}
    for role, projection in mlp.projections().items():
        for name, value in projection.parameters().items():
            if role != "down":
                value = value[place]
            elif name == "weight":
                value = value[:, place]
            tensors[f"{projection.address}.{name}"] = value
    return tensors
