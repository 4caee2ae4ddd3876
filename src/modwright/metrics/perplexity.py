"""Perplexity of a causal language model on a named text, as a number that carries its recipe."""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.text import TokenizedText, tokenizer_of
from modwright.metrics.forward import (
    PerplexityRecipe,
    call,
    cut_windows,
    dtype_of,
    position_limit,
    require_causal,
    require_vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Perplexity", "PerplexityRecipe", "perplexity", "position_limit"]

# The float32 copy of the logits is taken in slices of this many numbers (32 MiB).
_SLICE = 1 << 23
_NO_LM = "perplexity needs a causal language model"


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Attributes:
        value: exp of ``nll_per_token``, the mean negative log-likelihood of the counted tokens in
            nats; inf or nan where the model's output is not finite.
        tokens: how many tokens were counted.
        bits_per_byte: summed negative log-likelihood in bits over the UTF-8 bytes of the text that
            the counted tokens cover; does not depend on the tokenizer's granularity.
        word_perplexity: exp of the same sum over the words that begin in that text, or nan.
        recipe: JSON-able: data, split, windows, length, stride, BOS, batch size, unit, how the
            covered text was found, dtype, vocabulary size, sha256 of the token ids.
        seconds: of the forward passes.
    """

    value: float
    nll_per_token: float
    tokens: int
    bits_per_byte: float
    word_perplexity: float
    recipe: dict[str, Any]
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether the value is an ordinary number."""
        return math.isfinite(self.value)


def perplexity(
    model: Any, tokenizer: Any, recipe: PerplexityRecipe, progress: Progress = SILENT
) -> Perplexity:
    """Measure how well a causal language model predicts a text, in evaluation mode.

    Log-probabilities are taken in float32, whatever the model's dtype.

    Args:
        model: a transformers model with logits over a vocabulary, or what holds it.
        tokenizer: the model's own, or the opened checkpoint that has it.
        recipe: what to measure.
        progress: told of every batch.

    Raises:
        InvalidInputError: not a causal language model, too little text, a number outside its range.

    Example:
        ``perplexity(model, tokenizer, PerplexityRecipe("lee")).value``
    """
    model, tokenizer = model_of(model), tokenizer_of(tokenizer)
    require_vocabulary(model, _NO_LM)
    windows = cut_windows(model, tokenizer, recipe)
    # How many text tokens of a window count: all that have something before them, or the new ones.
    after = len(windows.special.after)
    counts = [min(new, recipe.length - after - 1) for new in windows.new]

    with eval_mode(model), torch.no_grad():
        require_causal(model, _NO_LM, windows.rows)
        begin = time.perf_counter()
        nll = _total_nll(model, windows.rows, counts, after, recipe.batch_size, progress)
        seconds = time.perf_counter() - begin

    ends = [start + windows.content for start in windows.starts]
    spans = [(end - count, end) for end, count in zip(ends, counts)]
    size, words, how = _text_amounts(tokenizer, windows.text, spans)
    tokens = sum(counts)
    return Perplexity(
        value=_exp(nll / tokens),
        nll_per_token=nll / tokens,
        tokens=tokens,
        bits_per_byte=nll / math.log(2) / size if size else math.nan,
        word_perplexity=_exp(nll / words) if words else math.nan,
        recipe={
            **windows.recipe,
            "unit": "per token",
            "tokens_counted": tokens,
            "bytes_covered": size,
            "words_covered": words,
            "covered_text": how,
            "dtype": dtype_of(model),
        },
        seconds=seconds,
    )


def _total_nll(
    model: PreTrainedModel,
    rows: Tensor,
    counts: list[int],
    after: int,
    batch_size: int,
    progress: Progress,
) -> float:
    """Negative log-likelihood in nats, summed over ``counts[i]`` tokens of every row i.

    They are the last ones of the row before its ``after`` special tokens.
    """
    total = 0.0
    with progress.phase("perplexity", len(rows)) as task:
        for at in range(0, len(rows), batch_size):
            ids, counted = rows[at : at + batch_size], counts[at : at + batch_size]
            logits = call(model, ids, logits_to_keep=max(counted) + after + 1).logits
            for row, tokens, count in zip(logits, ids.to(logits.device), counted):
                start, stop = len(tokens) - after - count, len(tokens) - after
                shift = len(row) - len(tokens)  # a model that gave fewer rows gave the last ones
                size = max(1, _SLICE // row.shape[-1])
                parts = row[start + shift - 1 : stop + shift - 1].split(size)
                total += sum(
                    float(F.cross_entropy(part.float(), wanted, reduction="sum"))
                    for part, wanted in zip(parts, tokens[start:stop].split(size))
                )
            task.advance(len(ids))
    return total


def _text_amounts(
    tokenizer: PreTrainedTokenizerBase, tokenized: TokenizedText, spans: list[tuple[int, int]]
) -> tuple[int, int, str]:
    """UTF-8 bytes and words of the text that token spans cover, and how that text was found."""
    ends, text = tokenized.ends, tokenized.text
    if ends is None:
        pieces = [
            tokenizer.decode(tokenized.ids[start:stop].tolist(), clean_up_tokenization_spaces=False)
            for start, stop in spans
        ]
        words = sum(len(piece.split()) for piece in pieces)
        return sum(len(piece.encode()) for piece in pieces), words, "counted tokens, decoded"
    word_starts = [word.start() for word in re.finditer(r"\S+", text)]
    size = words = 0
    for start, stop in spans:
        # From the end of the token before, so that spaces between tokens belong to the later one.
        left, right = int(ends[start - 1]) if start else 0, int(ends[stop - 1])
        size += len(text[left:right].encode())
        words += bisect_left(word_starts, right) - bisect_left(word_starts, left)
    return size, words, "source text from token to token"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
