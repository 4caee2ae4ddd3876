"""Narrowing an MLP, or every expert of a mixture, to some of its neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from modwright.anatomy import Mlp
from modwright.anatomy.views import Sublayer
from modwright.edits.change import Change, checked_index, lacks, replace_mlp
from modwright.edits.experts import keep_expert_neurons

__all__ = ["keep_neurons"]


def keep_neurons(part: Sublayer, index: Sequence[int] | Tensor) -> Change:
    """Narrows an MLP to the neurons ``index``, in that order; nothing makes up for the others.

    ``index`` may be a mask. In a mixture, every expert keeps its neurons of these numbers.

    Raises:
        InvalidInputError: there are no neurons, they depend on each other, or not all are there.
    """
    asked: Any = part
    neurons = getattr(asked, "neurons", None)
    if neurons is None:
        raise lacks(asked, "neurons")
    if neurons.num_experts is not None:
        return keep_expert_neurons(asked, [index] * neurons.num_experts)
    return _narrowed(asked, index)


def _narrowed(mlp: Mlp, index: Sequence[int] | Tensor) -> Change:
    kept = checked_index(index, mlp.intermediate_size, f"{mlp.address}: neurons")
    return replace_mlp(
        mlp,
        up=mlp.up.weight[kept],
        down=mlp.down.weight[:, kept],
        gate=None if mlp.gate is None else mlp.gate.weight[kept],
        up_bias=None if mlp.up.bias is None else mlp.up.bias[kept],
        gate_bias=None if mlp.gate is None or mlp.gate.bias is None else mlp.gate.bias[kept],
    )
