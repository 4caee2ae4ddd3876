"""The same sublayer with other widths, or with biases that it did not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

from torch import Tensor

from modwright.anatomy import Attention, Mlp, Projection
from modwright.anatomy.views import Sublayer
from modwright.core.errors import InvalidInputError
from modwright.edits.change import Change
from modwright.edits.edit import Replace

__all__ = ["resize"]

Stored = Mapping[str, Tensor]
"""What a linear layer stores, by name: weight, perhaps reduce (of a factor pair), perhaps bias."""


@singledispatch
def resize(sublayer: Sublayer, values: Mapping[str, Stored]) -> Change:
    """Gives a sublayer new parameters of other shapes; factor pairs stay factor pairs.

    Args:
        sublayer: of a model; an attention becomes modwright's own.
        values: role -> parameters in place of the old ones, or beside them (a bias).

    Raises:
        InvalidInputError: it is of a kind that cannot be refitted.

    Example:
        >>> import modwright
        >>> mlp = modwright.open("preset:tiny-gpt2").anatomy.blocks[0].mlp
        >>> narrow = {"up": {"weight": mlp.up.weight[:, :40]}, "down": {"bias": torch.zeros(48)}}
        >>> [edit.kwargs["in_features"] for edit in resize(mlp, narrow).edits]
        [40, 192]
    """
    raise InvalidInputError(
        f"{sublayer.address}: a {type(sublayer).__name__} cannot be given other widths"
    )


@resize.register
def _(attention: Attention, values: Mapping[str, Stored]) -> Change:
    stored = _merged(attention, values)
    shape = replace(
        attention.shape,
        hidden_size=_in_features(stored["q"]),
        biases="".join(role for role, named in stored.items() if "bias" in named),
    )
    return _whole(attention, "attention", shape.to_dict(), stored)


@resize.register
def _(mlp: Mlp, values: Mapping[str, Stored]) -> Change:
    stored = _merged(mlp, values)
    if mlp.is_generic:
        shape = replace(
            mlp.shape,
            hidden_size=_in_features(stored["up"]),
            biases="".join(role[0] for role, named in stored.items() if "bias" in named),
        )
        return _whole(mlp, "feed_forward", shape.to_dict(), stored)
    change = Change()
    for role, projection in mlp.projections().items():
        change += _map(projection, stored[role])
    return change


def _merged(sublayer: Sublayer, values: Mapping[str, Stored]) -> dict[str, dict[str, Tensor]]:
    return {
        role: {**projection.parameters(), **values.get(role, {})}
        for role, projection in sublayer.projections().items()
    }


def _in_features(stored: Stored) -> int:
    return stored.get("reduce", stored["weight"]).shape[1]


def _whole(
    sublayer: Sublayer, part: str, shape: dict[str, Any], stored: Mapping[str, Stored]
) -> Change:
    """One edit for the part, and one for each factor pair in it."""
    change = Change((Replace(sublayer.address, part, shape),))
    for role, projection in sublayer.projections().items():
        inner = _map(projection, stored[role])
        dense = inner.edits[0].to_dict()["part"] == "linear"
        change += Change((), inner.tensors) if dense else inner
    return change


def _map(projection: Projection, stored: Stored) -> Change:
    """A linear layer of its own that stores these parameters."""
    if "reduce" in stored and stored["reduce"].shape[0] >= _in_features(stored):
        dense = stored["weight"].double() @ stored["reduce"].double()  # the rank saves nothing
        bias = {name: tensor for name, tensor in stored.items() if name == "bias"}
        stored = {"weight": dense.to(stored["weight"].dtype), **bias}
    sizes = {
        "in_features": _in_features(stored),
        "out_features": stored["weight"].shape[0],
        "bias": "bias" in stored,
    }
    part = "linear"
    if "reduce" in stored:
        part, sizes = "factors", {**sizes, "rank": stored["reduce"].shape[0]}
    named = {f"{projection.address}.{name}": tensor for name, tensor in stored.items()}
    return Change((Replace(projection.address, part, sizes),), named)
