"""Repeats, reorders and leaves out whole blocks, as frankenmerges do; nothing is trained.

Nothing promises that the result computes anything like the model it came from: measure it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from modwright.anatomy import Anatomy, pick_layers
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.edits import arrange
from modwright.edits.edit import MOST_BLOCKS
from modwright.edits.replay import num_removed
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["ArrangeBlocks"]


@register_method(
    "arrange",
    requires=Requirements(parts=("block",)),
    examples=({"blocks": "0:2, 1:4"}, {"blocks": "3, 0"}),
)
@dataclass(frozen=True)
class ArrangeBlocks(WithoutData):
    """Lets the blocks stand in an order of the user's choice; a block may stand more than once.

    Attributes:
        blocks: the new order, as in "0:20, 10:30": single layers, slices as in Python and *,
            apart by commas.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> modwright.apply(model, ArrangeBlocks("0:3, 1:4")).model.config.num_hidden_layers
        6
    """

    blocks: str

    def title(self) -> str:
        return f"blocks {self.blocks}"

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Exactly what goes, less than nothing where the model grows."""
        sizes = [num_removed(anatomy, block) for block in anatomy.blocks]
        gone = sum(sizes) - sum(sizes[i] for i in self._order(len(sizes)))
        return gone, gone

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Says the order, and which blocks are copied and which are left out."""
        layers = len(anatomy.blocks)
        order = self._order(layers)
        times = Counter(order)
        reasons = {
            "order": order,
            "repeated": sorted(i for i, n in times.items() if n > 1),
            "left_out": [i for i in range(layers) if i not in times],
        }
        note = (
            f"{len(order)} blocks in place of {layers}, in an order that the model was not "
            "trained for: the function is not kept."
        )
        return arrange(order), reasons, (note,)

    def _order(self, layers: int) -> list[int]:
        order = pick_layers(self.blocks, layers)
        if len(order) > MOST_BLOCKS:
            raise InvalidInputError(
                f"arrange: {len(order):,} blocks; at most {MOST_BLOCKS} can stand"
            )
        if order == list(range(layers)):
            raise InvalidInputError(
                f"arrange: {self.blocks!r} is the order that the blocks have already"
            )
        return order
