"""Pre-RMSNorm and Pre-CRMSNorm (arXiv 2305.14858): exact rewrites of models with LayerNorm.

A pre-norm model never uses the mean of its residual stream. So all that writes to the stream can be
recentered, and every LayerNorm that reads it is an RMSNorm then, with the same epsilon. A stream of
zero mean can be stored without one coordinate: that one is minus the sum of the others.

Axes: d hidden_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.progress import Progress
from modwright.edits import Change
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method
from modwright.surgery.stream_blockers import Form, refuse_blockers
from modwright.surgery.stream_conversion import Conversion
from modwright.surgery.stream_report import notes, reasons

__all__ = ["PreRmsNorm"]


@register_method(
    "pre_rmsnorm",
    paper="pre-rmsnorm",
    requires=Requirements(parts=("embedding", "norm", "attention", "mlp", "head")),
    exact=True,
    examples=(
        {"form": "rms"},
        {"form": "rms", "fold_affine": True},
        {"form": "rms", "training": True},
        {"form": "crms", "drop_index": 3},
    ),
)
@dataclass(frozen=True)
class PreRmsNorm(WithoutData):
    """Turns every LayerNorm of a pre-norm model into an RMSNorm; the function is kept.

    Attributes:
        form: "rms" recentres what writes to the stream; "crms" then drops the coordinate of the
            stream that follows from the others.
        training: with "rms": keep all parameters and recentre when the model runs, so that training
            goes on exactly as before.
        fold_affine: with "rms": fold gain and shift of the norms into the maps that read them; a
            tied head gets a table of its own then. "crms" always does so.
        drop_index: with "crms": which coordinate goes; negative ones count from the end.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-gpt2").model
        >>> result = modwright.apply(model, PreRmsNorm("crms"))
        >>> modwright.Anatomy.of(result.model)
        Anatomy(gpt2, 4 blocks, hidden_size 47, 134,072 parameters)
    """

    form: Form = "rms"
    training: bool = False
    fold_affine: bool = False
    drop_index: int = -1

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise unknown_name("form", self.form, get_args(Form))
        if self.training and self.form == "crms":
            raise InvalidInputError(
                "training=True keeps all parameters, so it is of form 'rms'; a model of form "
                "'crms' can be trained as it is, on fewer parameters"
            )
        if self.training and self.fold_affine:
            raise InvalidInputError(
                "training=True keeps all parameters, and fold_affine=True changes them"
            )
        if self.form == "rms" and self.drop_index != -1:
            raise InvalidInputError(
                "drop_index is of form 'crms'; form 'rms' keeps all coordinates"
            )

    def title(self) -> str:
        name = {"rms": "Pre-RMSNorm", "crms": "Pre-CRMSNorm"}[self.form]
        how = [", training form"] * self.training + [", affine folded"] * self.fold_affine
        return "".join([name, *how])

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Exactly what goes; less than nothing where a tied head gets a table of its own."""
        gone = self._conversion(anatomy, counting=True).parameters_gone()
        return gone, gone

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Lists what writes to the stream and what reads it, and rewrites both."""
        conversion = self._conversion(anatomy)
        change = Change()
        with progress.phase("recentre", len(anatomy.blocks) + 1) as task:
            for block in anatomy.blocks:
                change += conversion.block(block)
                task.advance()
            change += conversion.outside()
            task.advance()
        return change, reasons(conversion), notes(conversion)

    def _conversion(self, anatomy: Anatomy, counting: bool = False) -> Conversion:
        refuse_blockers(
            anatomy,
            self.form,
            training=self.training,
            fold=self.fold_affine,
            counting=counting,
        )
        width = anatomy.hidden_size
        if not -width <= self.drop_index < width:
            raise InvalidInputError(
                f"pre_rmsnorm: drop_index {self.drop_index} must lie between {-width} and "
                f"{width - 1}"
            )
        made = Conversion(anatomy, self.form, self.training, self.fold_affine, self.drop_index)
        if not made.has_work():
            raise InvalidInputError(
                f"pre_rmsnorm: the model is {self.title()} already; nothing would change"
            )
        return made
