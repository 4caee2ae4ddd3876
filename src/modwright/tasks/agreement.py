"""How far a model is from the one it was made of: what both predict at the same places of a text.

Axes: B windows of a batch, T tokens of a window, N places compared, V vocabulary, d hidden size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.calibration.text import TokenWindows, tokenizer_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.tasks.eval_positions import (
    HIDDEN,
    MASKED,
    NEXT,
    EvalPositions,
    eval_positions_of,
    kind_of,
)
from modwright.tasks.forward import call, vocabulary_size
from modwright.tasks.windows import PerplexityRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Agreement", "agreement", "require_comparable"]

# The wide copies of the outputs are taken in slices of this many numbers (16 MiB in float64).
_SLICE = 1 << 21


@dataclass(frozen=True)
class Agreement:
    """How far a model is from its teacher.

    Attributes:
        kl: mean over the places of KL(teacher || student) between the two distributions over the
            vocabulary, in nats; inf or nan where an output is not finite, None for models without
            a head.
        top1: share of the places at which both put the same token first, 0 to 1; None for models
            without a head.
        cosine: mean cosine between the last hidden states at the places, for models without a head;
            else None.
        tokens: how many places were compared.
        recipe: JSON-able: what `Perplexity.recipe` says of the windows, what was compared at which
            tokens, direction, unit, both dtypes.
        seconds: of the forward passes of both.
    """

    kl: float | None
    top1: float | None
    cosine: float | None
    tokens: int
    recipe: dict[str, Any]
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether what was measured are ordinary numbers."""
        return all(math.isfinite(x) for x in (self.kl, self.cosine) if x is not None)


def agreement(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    windows: PerplexityRecipe | TokenWindows,
    progress: Progress = SILENT,
) -> Agreement:
    """Compare what two models say at the same tokens of the same windows.

    What is compared follows from what the models are. Of models that predict the next token: their
    distributions before every token that perplexity counts. Of models that see both sides and have
    a head over the vocabulary: their distributions at every seventh token, which is masked, since
    at a token that it sees an encoder hardly errs. Of models without a head: their last hidden
    states, whose cosine takes the place of KL and top-1. Padding and special tokens are left out.

    Both models run batch by batch: the outputs of two batches are alive and never more. KL is
    computed in float64 (float32 where the device has none) whatever the dtypes of the models.

    Args:
        teacher: the original; a model, an opened checkpoint or an edit's result, as the student.
        student: what was made of it.
        tokenizer: of both; `modwright.tasks.vocabulary.require_same_tokenizer` checks that. None
            will do for one's own sequences, where nothing has to be masked.
        windows: the recipe of the evaluation windows, or one's own sequences, padded or not.
        progress: told of every batch.

    Raises:
        InvalidInputError: the outputs cannot be compared; says which and why.

    Example:
        ``agreement(original, smaller, tokenizer, PerplexityRecipe("lee")).kl``
    """
    teacher, student = model_of(teacher), model_of(student)
    tokenizer = None if tokenizer is None else tokenizer_of(tokenizer)
    with eval_mode(teacher, student), torch.no_grad():
        kind = require_comparable(teacher, student)
        reading = eval_positions_of(kind, teacher, tokenizer, windows)
        sums = _SUMS[kind]()
        begin = time.perf_counter()
        with progress.phase("agreement", sum(len(batch.ids) for batch in reading.batches)) as task:
            for batch in reading.batches:
                for pair in _pairs(teacher, student, batch, sums.output):
                    sums.add(*pair)
                task.advance(len(batch.ids))
        seconds = time.perf_counter() - begin
    dtypes = (str(model.dtype).removeprefix("torch.") for model in (student, teacher))
    return Agreement(
        **sums.means(),
        tokens=sums.positions,
        recipe={
            **reading.recipe,
            "tokens_compared": sums.positions,
            **sums.told,
            **dict(zip(("dtype", "teacher_dtype"), dtypes)),
        },
        seconds=seconds,
    )


def require_comparable(teacher: PreTrainedModel, student: PreTrainedModel) -> str:
    """What of two models can be compared, seen from a few tokens.

    Raises:
        InvalidInputError: outputs of two kinds or two sizes, or none that can be compared.
    """
    names = [type(model).__name__ for model in (teacher, student)]
    with eval_mode(teacher, student), torch.no_grad():
        kinds = [kind_of(model) for model in (teacher, student)]
    known = [kind for kind in kinds if kind is not None]
    if len(set(known)) > 1:
        said = " and ".join(f"{name} gives a {kind}" for name, kind in zip(names, kinds))
        raise InvalidInputError(f"two models can be compared if they give the same; {said}")
    kind = known[0] if known else NEXT
    sizes = [_output_size(model, kind) for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        what = "hidden states" if kind == HIDDEN else "a vocabulary"
        raise InvalidInputError(
            f"{names[0]} has {what} of {sizes[0]} and {names[1]} of {sizes[1]}; they can be "
            "compared only at one size"
        )
    return kind


def _output_size(model: PreTrainedModel, kind: str) -> int | None:
    config = model.config.get_text_config()
    return getattr(config, "hidden_size", None) if kind == HIDDEN else vocabulary_size(model)


def _pairs(
    teacher: PreTrainedModel, student: PreTrainedModel, batch: EvalPositions, output: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs (N, V or d) of both models at the places of a batch, a slice at a time, widened."""
    # Columns before the first place of any row are not asked for.
    keep = batch.ids.shape[1] - int(batch.read.any(0).int().argmax())
    found = [
        getattr(
            call(
                model,
                batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                logits_to_keep=keep,
            ),
            output,
        )
        for model in (teacher, student)
    ]
    device = found[1].device
    wide = torch.float32 if device.type == "mps" else torch.float64
    size = max(1, _SLICE // found[1].shape[-1])
    for row, read in enumerate(batch.read):
        for positions in read.nonzero()[:, 0].split(size):
            # A model that gave fewer columns gave the last ones.
            one, two = (
                out[row, (positions - (len(read) - out.shape[1])).to(out.device)].to(device, wide)
                for out in found
            )
            yield one, two


@dataclass
class _Distributions:
    """Sums over places of what two distributions over a vocabulary have to do with each other."""

    output = "logits"
    told = {"direction": "KL(teacher || student)", "unit": "nats per token"}
    positions: int = 0
    kl: float = 0.0
    same: int = 0

    def add(self, teacher: Tensor, student: Tensor) -> None:
        whole = ~(teacher.isnan().any(-1) | student.isnan().any(-1))
        self.same += int(((teacher.argmax(-1) == student.argmax(-1)) & whole).sum())
        given, got = teacher.log_softmax(-1), student.log_softmax(-1)
        # A token that the teacher rules out adds nothing, whatever the student says of it.
        terms = torch.where(given == -math.inf, 0.0, given.exp() * (given - got))
        self.kl += float(terms.sum())
        self.positions += len(teacher)

    def means(self) -> dict[str, float | None]:
        return {"kl": self.kl / self.positions, "top1": self.same / self.positions, "cosine": None}


@dataclass
class _States:
    """Sums over places of the cosine between two hidden states."""

    output = "last_hidden_state"
    told = {"unit": "mean cosine"}
    positions: int = 0
    cosine: float = 0.0

    def add(self, teacher: Tensor, student: Tensor) -> None:
        self.cosine += float(F.cosine_similarity(teacher, student, dim=-1).sum())
        self.positions += len(teacher)

    def means(self) -> dict[str, float | None]:
        return {"kl": None, "top1": None, "cosine": self.cosine / self.positions}


_SUMS = {NEXT: _Distributions, MASKED: _Distributions, HIDDEN: _States}
