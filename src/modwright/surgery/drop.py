"""Removes the parts that the user names. No data, no scores: the choice is the user's."""

from __future__ import annotations

from dataclasses import dataclass

from modwright.anatomy import Anatomy, Block, select
from modwright.anatomy.views import Sublayer
from modwright.core.progress import Progress
from modwright.edits import Change, remove
from modwright.edits.canonical import target_of
from modwright.edits.replay import num_removed
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["Drop"]


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
        >>> model = modwright.open("preset:tiny-llama").model
        >>> modwright.apply(model, Drop("attention[0]; block[-1]")).model.config.num_hidden_layers
        3
    """

    parts: str
    drop_post_norm: bool = False

    def title(self) -> str:
        return f"drop {self.parts}"

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Exactly what the named parts hold."""
        chosen = self._chosen(anatomy)[0]
        gone = sum(num_removed(anatomy, part, self.drop_post_norm) for part in chosen)
        return gone, gone

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Takes out what is named; what is not there is refused."""
        chosen, change = self._chosen(anatomy)
        reasons = {"removed": [part.address for part in chosen], "chosen by": "the user"}
        return change, reasons, ()

    def _chosen(self, anatomy: Anatomy) -> tuple[list[Block | Sublayer], Change]:
        change = Change()
        chosen = select(anatomy, self.parts)
        for part in chosen:
            change += remove(part, self.drop_post_norm and not isinstance(part, Block))
        target_of(anatomy, change.edits)  # what cannot be is refused here, not when it is applied
        return chosen, change
