"""The positions of a text at which two models are compared, and the inputs that have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.data.text import TokenWindows
from modwright.metrics.forward import PerplexityRecipe, cut_windows, require_known_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HIDDEN", "MASKED", "NEXT", "EvalPositions", "eval_positions_of"]

NEXT, MASKED, HIDDEN = "next token", "masked token", "hidden state"
"""What can be compared of two models that read text."""

# One token in seven is masked, about the share that masked language models are trained with.
_EVERY, _FIRST = 7, 3


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
    if kind == NEXT:
        counted, said = [_before_each(b) for b in counted], "distribution of the next token"
    elif kind == MASKED:
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
    special = torch.tensor([] if kind == NEXT or tokenizer is None else tokenizer.all_special_ids)
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
