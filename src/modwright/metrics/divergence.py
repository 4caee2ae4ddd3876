"""How far a model is from the one it was made of: what both say at the same positions of a text."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.text import TokenWindows, tokenizer_of
from modwright.metrics.forward import (
    PerplexityRecipe,
    call,
    cut_windows,
    dtype_of,
    first_ids,
    looks_ahead,
    require_known_ids,
    require_vocabulary,
    vocabulary_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Divergence", "EvalPositions", "divergence", "eval_positions_of", "require_comparable"]

# The wide copies of the outputs are taken in slices of this many numbers (16 MiB in float64).
_SLICE = 1 << 21
_NEXT, _MASKED, _HIDDEN = "next token", "masked token", "hidden state"
# One token in seven is masked, about the share that masked language models are trained with.
_EVERY, _FIRST = 7, 3
_NEEDS = (
    "agreement needs models of text that give every token logits over the vocabulary or a hidden "
    "state"
)


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its teacher.

    Attributes:
        kl: mean over the positions of KL(teacher || student) over the vocabulary, in nats; inf or
            nan where an output is not finite, None for models without a head.
        top1: share of the positions at which both put the same token first; None without a head.
        cosine: mean cosine between the last hidden states, for models without a head; else None.
        tokens: how many positions were compared.
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


def divergence(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    windows: PerplexityRecipe | TokenWindows,
    progress: Progress = SILENT,
) -> Divergence:
    """Compare what two models say at the same tokens of the same windows.

    What is compared follows from what the models are. Of models that predict the next token: their
    distributions before every token that perplexity counts. Of models that see both sides and have
    a head over the vocabulary: their distributions at every seventh token, which is masked, since
    at a token that it sees an encoder hardly errs. Of models without a head: their last hidden
    states, whose cosine takes the place of KL and top-1. Padding and special tokens are left out.

    The outputs of two batches are alive and never more. KL is computed in float64 (float32 where
    the device has none) whatever the dtypes of the models.

    Args:
        teacher: the original; a model, an opened checkpoint or an edit's result, as the student.
        student: what was made of it.
        tokenizer: of both, see `modwright.metrics.vocabulary.require_same_tokenizer`. None will do
            for one's own sequences, where nothing has to be masked.
        windows: the recipe of the evaluation windows, or one's own sequences, padded or not.
        progress: told of every batch.

    Raises:
        InvalidInputError: the outputs cannot be compared; says which and why.

    Example:
        ``divergence(original, smaller, tokenizer, PerplexityRecipe("lee")).kl``
    """
    teacher, student = model_of(teacher), model_of(student)
    tokenizer = None if tokenizer is None else tokenizer_of(tokenizer)
    with eval_mode(teacher, student), torch.no_grad():
        kind = require_comparable(teacher, student)
        batches, recipe = eval_positions_of(kind, teacher, tokenizer, windows)
        output, compare, told = _COMPARED[kind == _HIDDEN]
        sums, places = Counter[str](), 0
        begin = time.perf_counter()
        with progress.phase("agreement", sum(len(batch.ids) for batch in batches)) as task:
            for batch in batches:
                for one, two in _pairs(teacher, student, batch, output):
                    sums.update(compare(one, two))
                    places += len(one)
                task.advance(len(batch.ids))
        seconds = time.perf_counter() - begin
    recipe |= {"tokens_compared": places, **told}
    recipe |= {"dtype": dtype_of(student), "teacher_dtype": dtype_of(teacher)}
    means = {n: sums[n] / places if n in sums else None for n in ("kl", "top1", "cosine")}
    return Divergence(**means, tokens=places, recipe=recipe, seconds=seconds)


def require_comparable(teacher: PreTrainedModel, student: PreTrainedModel) -> str:
    """What of two models can be compared, seen from a few tokens; refuses two that differ in it."""
    models, names = (teacher, student), [type(model).__name__ for model in (teacher, student)]
    with eval_mode(*models), torch.no_grad():
        kinds = [_kind_of(model) for model in models]
    known = [kind for kind in kinds if kind is not None]
    if len(set(known)) > 1:
        said = " and ".join(f"{name} gives a {kind}" for name, kind in zip(names, kinds))
        raise InvalidInputError(f"two models can be compared if they give the same; {said}")
    kind, what = known[0] if known else _NEXT, "a vocabulary"
    sizes = [vocabulary_size(model) for model in models]
    if kind == _HIDDEN:
        what = "hidden states"
        sizes = [getattr(m.config.get_text_config(), "hidden_size", None) for m in models]
    if sizes[0] != sizes[1]:
        raise InvalidInputError(
            f"{names[0]} has {what} of {sizes[0]} and {names[1]} of {sizes[1]}; they can be "
            "compared only at one size"
        )
    return kind


def _kind_of(model: PreTrainedModel) -> str | None:
    """What can be compared of a model; None where its logits are not finite, so it is not seen."""
    require_vocabulary(model, _NEEDS)
    ids = first_ids(model)
    output = call(model, ids)
    if getattr(output, "logits", None) is None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hidden.shape[:2] != ids.shape:
            raise InvalidInputError(f"{_NEEDS}; {type(model).__name__} gives neither")
        return _HIDDEN
    del output
    ahead = looks_ahead(model, ids, _NEEDS)
    return None if ahead is None else _MASKED if ahead else _NEXT


@dataclass(frozen=True, eq=False)
class EvalPositions:
    """Inputs of one batch: token ids (B, T), which are real (None: all), and where to compare.

    ``read`` (B, T) marks the positions whose outputs are compared. ``positions`` (B, T) are given
    to the model where padding stands before the text.
    """

    ids: Tensor
    read: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


def eval_positions_of(
    kind: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    windows: PerplexityRecipe | TokenWindows,
) -> tuple[list[EvalPositions], dict[str, Any]]:
    """The inputs of every batch with the positions to compare, and what a recipe says of them.

    Raises:
        InvalidInputError: too little text, numbers outside their range, no mask token.
    """
    if isinstance(windows, TokenWindows):
        counted, recipe = _given(kind, tokenizer, windows), dict(windows.recipe)
    elif tokenizer is None:
        raise InvalidInputError("the windows of a text need the models' tokenizer; give it")
    else:
        counted, recipe = _cut(model, tokenizer, windows)
    said = "last hidden state of every token"
    if kind == _NEXT:
        counted, said = [_before_each(b) for b in counted], "distribution of the next token"
    elif kind == _MASKED:
        counted = list(_masked(counted, getattr(tokenizer, "mask_token_id", None)))
        said = f"distribution at every {_EVERY}th token, masked"
    if not any(batch.read.any() for batch in counted):
        raise InvalidInputError(
            "the windows hold too few tokens to compare anything at; give longer ones"
        )
    for batch in counted:
        require_known_ids(model, batch.ids)
    return counted, {**recipe, "compared": said}


def _cut(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: PerplexityRecipe
) -> tuple[list[EvalPositions], dict[str, Any]]:
    """The windows of a recipe, with their special tokens, and the tokens that count."""
    windows = cut_windows(model, tokenizer, recipe)
    counts = torch.zeros(len(windows.rows), windows.content, dtype=torch.bool)
    for row, new in zip(counts, windows.new):
        row[-new:] = True
    size, counts = recipe.batch_size, windows.special.padded(counts)
    parts = zip(windows.rows.split(size), counts.split(size))
    return [EvalPositions(*part) for part in parts], windows.recipe


def _given(
    kind: str, tokenizer: PreTrainedTokenizerBase | None, windows: TokenWindows
) -> list[EvalPositions]:
    """One's own sequences as they are. An encoder's special tokens are in them and do not count."""
    special = torch.tensor([] if kind == _NEXT or tokenizer is None else tokenizer.all_special_ids)
    batches = []
    for batch in windows:
        ids, mask = batch.input_ids, batch.attention_mask
        counts = ~torch.isin(ids, special)
        if mask is not None:
            counts, mask = counts & mask.bool(), None if mask.all() else mask
        batches.append(EvalPositions(ids, counts, mask))
    return batches


def _before_each(batch: EvalPositions) -> EvalPositions:
    """The position before every token that counts and has a real one before it."""
    ids, counts, mask = batch.ids, batch.read, batch.mask
    if mask is None:
        return EvalPositions(ids, F.pad(counts[:, 1:], (0, 1), value=False))
    read = F.pad(counts[:, 1:] & mask[:, :-1].bool(), (0, 1), value=False)
    # Without them a row with padding before its text would stand at later positions.
    return EvalPositions(ids, read, mask, (mask.cumsum(-1) - 1).clamp(min=0))


def _masked(batches: list[EvalPositions], mask_token: int | None) -> Iterator[EvalPositions]:
    """Every seventh token that counts, with the mask token in its place."""
    if mask_token is None:
        raise InvalidInputError(
            "the models see the tokens after a token, so it must be masked to be predicted, and "
            "there is no tokenizer with a mask token"
        )
    seen = 0
    for batch in batches:
        order = seen + batch.read.flatten().cumsum(0).view_as(batch.read) - 1
        chosen = batch.read & (order % _EVERY == _FIRST)
        yield EvalPositions(batch.ids.masked_fill(chosen, mask_token), chosen, batch.mask)
        seen += int(batch.read.sum())


def _pairs(
    teacher: PreTrainedModel, student: PreTrainedModel, batch: EvalPositions, output: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs (N, V or d) of both models at these positions, a slice at a time, widened."""
    # Columns before the first position of any row are not asked for.
    keep = batch.ids.shape[1] - int(batch.read.any(0).int().argmax())
    wanted = {"attention_mask": batch.mask, "position_ids": batch.positions, "logits_to_keep": keep}
    found = [getattr(call(model, batch.ids, **wanted), output) for model in (teacher, student)]
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


def _distributions(teacher: Tensor, student: Tensor) -> dict[str, Any]:
    """Sums over positions of how two distributions over a vocabulary compare."""
    whole = ~(teacher.isnan().any(-1) | student.isnan().any(-1))
    same = (teacher.argmax(-1) == student.argmax(-1)) & whole
    given, got = teacher.log_softmax(-1), student.log_softmax(-1)
    # A token that the teacher rules out adds nothing, whatever the student says of it.
    terms = torch.where(given == -math.inf, 0.0, given.exp() * (given - got))
    return {"kl": float(terms.sum()), "top1": int(same.sum())}


def _states(teacher: Tensor, student: Tensor) -> dict[str, Any]:
    """The sum over positions of the cosine between two hidden states."""
    return {"cosine": float(F.cosine_similarity(teacher, student, dim=-1).sum())}


_COMPARED: tuple[tuple[str, Callable[[Tensor, Tensor], dict[str, Any]], dict[str, str]], ...] = (
    ("logits", _distributions, {"direction": "KL(teacher || student)", "unit": "nats per token"}),
    ("last_hidden_state", _states, {"unit": "mean cosine"}),
)
