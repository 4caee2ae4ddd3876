"""At which places of which tokens two models are compared. That follows from what the models are.

Axes: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.calibration.text import TokenWindows
from modwright.core.errors import InvalidInputError
from modwright.tasks.forward import (
    call,
    first_ids,
    looks_ahead,
    require_known_ids,
    require_vocabulary,
)
from modwright.tasks.windows import PerplexityRecipe, cut_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "HIDDEN",
    "MASKED",
    "NEXT",
    "EvalInputs",
    "EvalPositions",
    "eval_positions_of",
    "kind_of",
]

NEXT, MASKED, HIDDEN = "next token", "masked token", "hidden state"
# One token in seven is masked, about the share that masked language models are trained with.
_EVERY, _FIRST = 7, 3
_NEEDS = (
    "agreement needs models of text that give every token logits over the vocabulary or a hidden "
    "state"
)


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


@dataclass(frozen=True, eq=False)
class EvalInputs:
    """All batches, and the part of the recipe that says what was read where."""

    batches: list[EvalPositions]
    recipe: dict[str, Any]


def kind_of(model: PreTrainedModel) -> str | None:
    """What can be compared of a model: ``next token``, ``masked token`` or ``hidden state``.

    None where that cannot be seen because the model's logits are not finite.

    Raises:
        InvalidInputError: labels instead of tokens, an encoder with a decoder, no text.
    """
    require_vocabulary(model, _NEEDS)
    ids = first_ids(model)
    if _gives_states(model, ids):
        return HIDDEN
    ahead = looks_ahead(model, ids, _NEEDS)
    return None if ahead is None else MASKED if ahead else NEXT


def _gives_states(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether a model has no head; refuses one that gives neither logits nor states per token."""
    output = call(model, ids)
    if getattr(output, "logits", None) is not None:
        return False
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.shape[:2] != ids.shape:
        raise InvalidInputError(f"{_NEEDS}; {type(model).__name__} gives neither")
    return True


def eval_positions_of(
    kind: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    windows: PerplexityRecipe | TokenWindows,
) -> EvalInputs:
    """The inputs of every batch with the places to compare.

    Raises:
        InvalidInputError: too little text, numbers outside their range, no tokenizer, no mask
            token.
    """
    if isinstance(windows, TokenWindows):
        counted, recipe = _given(kind, tokenizer, windows)
    elif tokenizer is None:
        raise InvalidInputError("the windows of a text need the models' tokenizer; give it")
    else:
        counted, recipe = _cut(model, tokenizer, windows)
    batches, said = _KINDS[kind](counted, tokenizer)
    if not any(batch.read.any() for batch in batches):
        raise InvalidInputError(
            "the windows hold too few tokens to compare anything at; give longer ones"
        )
    for batch in batches:
        require_known_ids(model, batch.ids)
    return EvalInputs(batches, {**recipe, "compared": said})


@dataclass(frozen=True, eq=False)
class _Counted:
    """Token ids (B, T), which of them are real, and which count as tokens of the text."""

    ids: Tensor
    real: Tensor
    counts: Tensor


def _cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: PerplexityRecipe,
) -> tuple[list[_Counted], dict[str, Any]]:
    """The windows of a recipe, with their special tokens."""
    windows = cut_windows(model, tokenizer, recipe)
    counts = torch.zeros(len(windows.rows), windows.content, dtype=torch.bool)
    for row, new in zip(counts, windows.new):
        row[-new:] = True
    counts = windows.special.padded(counts)
    parts = zip(windows.rows.split(recipe.batch_size), counts.split(recipe.batch_size))
    return (
        [_Counted(rows, torch.ones_like(rows), counted) for rows, counted in parts],
        windows.recipe,
    )


def _given(
    kind: str, tokenizer: PreTrainedTokenizerBase | None, windows: TokenWindows
) -> tuple[list[_Counted], dict[str, Any]]:
    """One's own sequences as they are. An encoder's special tokens are in them and do not count."""
    special = torch.tensor([] if kind == NEXT or tokenizer is None else tokenizer.all_special_ids)
    batches = []
    for batch in windows:
        mask = batch.attention_mask
        real = torch.ones_like(batch.input_ids) if mask is None else mask
        counts = real.bool() & ~torch.isin(batch.input_ids, special)
        batches.append(_Counted(batch.input_ids, real, counts))
    return batches, dict(windows.recipe)


def _before_each(
    batches: list[_Counted], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[EvalPositions], str]:
    """The position before every token that counts and has a real one before it."""
    found = []
    for batch in batches:
        real = batch.real.bool()
        read = F.pad(batch.counts[:, 1:] & real[:, 1:] & real[:, :-1], (0, 1), value=False)
        if bool(real.all()):
            found.append(EvalPositions(batch.ids, read))
            continue
        # Without them a row with padding before its text would stand at later positions.
        positions = (batch.real.cumsum(-1) - 1).clamp(min=0)
        found.append(EvalPositions(batch.ids, read, batch.real, positions))
    return found, "distribution of the next token"


def _masked(
    batches: list[_Counted], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[EvalPositions], str]:
    """Every seventh token that counts, with the mask token in its place."""
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise InvalidInputError(
            "the models see the tokens after a token, so it must be masked to be predicted, and "
            "there is no tokenizer with a mask token"
        )
    found, seen = [], 0
    for batch in batches:
        order = seen + batch.counts.flatten().cumsum(0).view_as(batch.counts) - 1
        chosen = batch.counts & (order % _EVERY == _FIRST)
        ids = batch.ids.masked_fill(chosen, tokenizer.mask_token_id)
        found.append(EvalPositions(ids, chosen, None if batch.real.all() else batch.real))
        seen += int(batch.counts.sum())
    return found, f"distribution at every {_EVERY}th token, masked"


def _everywhere(
    batches: list[_Counted], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[EvalPositions], str]:
    found = [EvalPositions(b.ids, b.counts, None if b.real.all() else b.real) for b in batches]
    return found, "last hidden state of every token"


_Choice = Callable[
    [list[_Counted], "PreTrainedTokenizerBase | None"], tuple[list[EvalPositions], str]
]
_KINDS: dict[str, _Choice] = {NEXT: _before_each, MASKED: _masked, HIDDEN: _everywhere}
