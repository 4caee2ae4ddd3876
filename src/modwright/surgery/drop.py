"""Removes the parts that the user names, or repeats, reorders and leaves out whole blocks.

No data, no scores: the choice is the user's. Nothing promises that the result computes anything
like the model it came from: measure it.
"""

from __future__ import annotations

from dataclasses import dataclass

from modwright.anatomy import Anatomy, pick_layers, select
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.edits import Change, arrange, remove
from modwright.edits.canonical import target_of
from modwright.edits.edit import MOST_BLOCKS
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["ArrangeBlocks", "Drop"]


@register_method(
    "drop",
    requires=Requirements(parts=("attention", "mlp", "block")),
    examples=({"parts": "attention[0]; mlp[1]"}, {"parts": "block[1:3]; mlp[-1]"}),
)
@dataclass(frozen=True)
class Drop(WithoutData):
    """Removes the attentions, MLPs and blocks that a selector names.

    Attributes:
        parts: which, as in "attention[3,7]; mlp[2]; block[28:30]". Layers count from 0, negative
            ones from the end, slices are Python's, * is every layer.
        drop_post_norm: in post-norm models, the norm goes with an attention or MLP.

    Example:
        >>> import modwright
        >>> result = modwright.apply(modwright.open("preset:tiny-llama"), Drop("mlp[0]; block[-1]"))
        >>> len(modwright.Anatomy.of(result).blocks)
        3
    """

    parts: str
    drop_post_norm: bool = False

    def title(self) -> str:
        return f"drop {self.parts}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Takes out what is named; what is not there is refused."""
        try:
            chosen = select(anatomy, self.parts)
        except InvalidInputError as error:
            raise InvalidInputError(f"drop: {error}") from None
        change = sum((remove(part, self.drop_post_norm) for part in chosen), Change())
        target_of(anatomy, change.edits)  # what cannot be is refused here, not when it is applied
        reasons = {"removed": [part.address for part in chosen], "chosen by": "the user"}
        return change, reasons, ()


@register_method(
    "arrange",
    requires=Requirements(parts=("block",)),
    examples=({"blocks": "0:2, 1:4"}, {"blocks": "3, 0"}),
)
@dataclass(frozen=True)
class ArrangeBlocks(WithoutData):
    """Reorders or repeats blocks, as frankenmerges do; nothing is trained.

    Attributes:
        blocks: the new order, as in "0:20, 10:30": single layers, slices as in Python and *,
            apart by commas.

    Example:
        >>> import modwright
        >>> result = modwright.apply(modwright.open("preset:tiny-llama"), ArrangeBlocks("0:3, 1:4"))
        >>> len(modwright.Anatomy.of(result).blocks)
        6
    """

    blocks: str

    def title(self) -> str:
        return f"blocks {self.blocks}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Says the order, and which blocks are copied and which are left out."""
        layers = len(anatomy.blocks)
        order = pick_layers(self.blocks, layers)
        if len(order) > MOST_BLOCKS:
            raise InvalidInputError(
                f"arrange: {len(order):,} blocks; at most {MOST_BLOCKS} can stand"
            )
        if order == list(range(layers)):
            raise InvalidInputError(
                f"arrange: {self.blocks!r} is the order that the blocks have already"
            )
        reasons = {
            "order": order,
            "repeated": sorted(i for i in set(order) if order.count(i) > 1),
            "left_out": [i for i in range(layers) if i not in order],
        }
        note = (
            f"{len(order)} blocks in place of {layers}, in an order that the model was not "
            "trained for: the function is not kept."
        )
        return arrange(order), reasons, (note,)
