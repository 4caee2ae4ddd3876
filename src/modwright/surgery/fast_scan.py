"""Puts components in place of stock token mixers that compute the same from the same tensors.

transformers' own scans of Mamba and Mamba-2 are loops in Python where no kernels are installed;
those of the components are not (arXiv 2312.00752). The edit stays in the config, and the checkpoint
is one that stock transformers opens: ``modwright export --to plain`` leaves the edit out.
"""

from __future__ import annotations

from dataclasses import dataclass

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.edits import Change
from modwright.edits.edit import Replace, State
from modwright.edits.remodeled import edits_of
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method

__all__ = ["FastScan"]


@register_method(
    "fast_scan", paper="mamba", requires=Requirements(parts=("attention",)), exact=True
)
@dataclass(frozen=True)
class FastScan(WithoutData):
    """Scans Mamba and Mamba-2 with modwright's components (arXiv 2312.00752); no weight changes.

    Outputs are those of the stock mixers but for rounding. Whatever trains or edits the model
    afterwards works on the same tensors.

    Example:
        >>> import modwright
        >>> result = modwright.apply(modwright.open("preset:tiny-mamba"), FastScan())
        >>> modwright.Anatomy.of(result).blocks[0]
        Block(0, pre-norm, holds Mamba1)
    """

    def title(self) -> str:
        return "scan with modwright's mixers"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Every stock mixer that is still there; one in which layers were factored keeps these."""
        found = anatomy.family.stock_mixer()
        if found is None:
            raise InvalidInputError(
                f"fast_scan: no component has the tensors of this {anatomy.family.name}'s token "
                "mixers and computes what they do"
            )
        name, arguments = found
        stock = [mixer.address for mixer in anatomy.stock_mixers]
        if not stock:
            raise InvalidInputError("fast_scan: no stock token mixer is left in the model")
        edits: list[State] = [Replace(address, name, dict(arguments)) for address in stock]
        inner = [f"{address}." for address in stock]
        edits += [e for e in edits_of(anatomy.config) if e.path.startswith(tuple(inner))]
        notes = []
        if arguments.get("bias"):
            notes.append(
                "The biases of in_proj do not enter the convolution behind left padding, as they "
                "do in transformers: outputs of padded rows differ there."
            )
        reasons = {"component": name, "replaced": stock}
        return Change(tuple(edits)), reasons, tuple(notes)
