"""Pre-RMSNorm and Pre-CRMSNorm (arXiv 2305.14858): exact rewrites of models with LayerNorm.

A pre-norm model never uses the mean of its residual stream. So all that writes to the stream can be
recentered, and every LayerNorm that reads it is an RMSNorm then, with the same epsilon. A stream of
zero mean can be stored without one coordinate: that one is minus the sum of the others.

Axes: d hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.edits import Change
from modwright.surgery.method import Decision, Requirements, WithoutData, register_method
from modwright.surgery.stream_blockers import Form, blockers
from modwright.surgery.stream_conversion import Conversion

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
        >>> result = modwright.apply(modwright.open("preset:tiny-gpt2"), PreRmsNorm("crms"))
        >>> modwright.Anatomy.of(result)
        Anatomy(gpt2, 4 blocks, hidden_size 47, 134,072 parameters)
    """

    form: Form = "rms"
    training: bool = False
    fold_affine: bool = False
    drop_index: int = -1

    def __post_init__(self) -> None:
        self._check_choices()
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
        how = ", training form" * self.training + ", affine folded" * self.fold_affine
        return f"Pre-{self.form.upper()}Norm{how}"

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
        return change, _reasons(conversion), tuple(_notes(conversion))

    def _conversion(self, anatomy: Anatomy, counting: bool = False) -> Conversion:
        how = {"training": self.training, "fold": self.fold_affine, "counting": counting}
        found = blockers(anatomy, self.form, **how)
        if found:
            more = f" (and {len(found) - 1} more such places)" if len(found) > 1 else ""
            raise InvalidInputError(f"pre_rmsnorm: {found[0]}{more}")
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


def _reasons(conversion: Conversion) -> dict[str, Any]:
    """Addresses of all that was converted, as JSON values."""
    stream, width = conversion.stream, conversion.width
    told: dict[str, Any] = {
        "hidden_size": [width, width - conversion.narrows],
        "norms": [norm.address for norm in stream.norms],
        "writers": [writer.address for writer in stream.writers],
        "recentered as they run": [w.address for w in stream.writers if conversion.runs(w)],
        "readers": [reader.part.address for reader in stream.readers],
        "folded": [norm.address for norm in stream.norms if conversion.folds(norm)],
        "untied": ["head.weight"] if conversion.unties else [],
        "not preserved": _not_preserved(conversion),
        "meaning": (
            "writers add to the residual stream and are recentered; readers see it through the "
            "norms; what is folded has its gain and shift in the maps that read it"
        ),
    }
    return told | ({"dropped coordinate": conversion.index} if conversion.narrows else {})


def _not_preserved(conversion: Conversion) -> list[str]:
    narrow = conversion.width - 1
    width, given = "", "zero mean"
    if conversion.narrows:
        width, given = f", {narrow} wide", f"zero mean and {narrow} channels"
    found = [f"hidden_states, the stream between blocks, comes without its mean{width}"]
    if conversion.folds(conversion.last_norm):
        found.append(f"the backbone's last_hidden_state comes without gain and shift{width}")
    return [*found, f"inputs_embeds from outside must have {given}"]


def _notes(conversion: Conversion) -> Iterator[str]:
    """Sentences for the user: which outputs are others now, and what it costs."""
    stream, narrows = conversion.stream, conversion.narrows
    yield f"Not preserved: {'; '.join(_not_preserved(conversion))}."
    if conversion.unties:
        weight = conversion.anatomy.outer["head"].parameters()["weight"]
        width = weight.shape[1] - (narrows and stream.last_reader is not None)
        size = weight.shape[0] * width * weight.element_size()
        yield (
            "The head was tied to the token table and has a table of its own now: "
            f"{size:,} bytes more."
        )
    if stream.last_reader is None and (narrows or conversion.wants_fold):
        back = "gives back the dropped coordinate and " if narrows else ""
        yield (
            f"{conversion.last_norm.address} {back}keeps its gain and shift: not all that reads it "
            "is a known part, so its output stays as it was."
        )
    changed = (writer for writer in stream.writers if not conversion.runs(writer))
    dtypes = {t.dtype for writer in changed for t in writer.parameters().values()}
    short = sorted(str(d).removeprefix("torch.") for d in dtypes if torch.finfo(d).bits < 32)
    if short:
        yield (
            f"Weights are {', '.join(short)}: what was recentered in float64 is rounded to that "
            "again, so outputs move about as much as that rounding does. Open the model in float32 "
            "for less."
        )
    others = ("att", "classifier", "summary", "layerdrop", "path")
    rates = [
        f"{name} {value:g}"
        for name, value in conversion.anatomy.config.to_dict().items()
        if "drop" in name and isinstance(value, int | float) and value > 0
        if not any(word in name for word in others)
    ]
    if conversion.training and rates:
        yield (
            f"Dropout on the stream ({', '.join(rates)}) gives it a mean in training: training "
            "goes on exactly as before with a rate of 0 alone."
        )
