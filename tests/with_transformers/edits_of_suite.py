"""The edits of transformers' own tests: of two layers, of which the first keeps an attention.

The suite reads the shape of the first layer's attention maps.
"""

from __future__ import annotations

from collections.abc import Callable

from modwright.anatomy import Anatomy
from modwright.edits import Change, keep_heads, keep_neurons, remove

__all__ = ["EDITS"]


def _fewer_heads(anatomy: Anatomy, layer: int) -> Change:
    """Groups of unequal size, where heads share keys and values, and layers of unequal numbers."""
    attention = anatomy.blocks[layer].attention
    return keep_heads(attention, range(1 + layer, attention.num_heads))


def _half_the_neurons(anatomy: Anatomy, layer: int) -> Change:
    mlp = anatomy.blocks[layer].mlp
    return keep_neurons(mlp, range(0, mlp.intermediate_size, 2))


def narrowed(anatomy: Anatomy) -> Change:
    return sum(
        (_fewer_heads(anatomy, i) + _half_the_neurons(anatomy, i) for i in range(2)), Change()
    )


def removed(anatomy: Anatomy) -> Change:
    return remove(anatomy.blocks[1].attention) + remove(anatomy.blocks[0].mlp)


def both(anatomy: Anatomy) -> Change:
    return removed(anatomy) + _fewer_heads(anatomy, 0) + _half_the_neurons(anatomy, 1)


EDITS: dict[str, Callable[[Anatomy], Change]] = {
    "narrowed": narrowed,
    "removed": removed,
    "both": both,
}
