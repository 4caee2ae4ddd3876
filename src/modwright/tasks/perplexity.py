"""Perplexity of a causal language model on a named text, as a number that carries its recipe.

Axes: B windows of a batch, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.calibration.text import (
    TextData,
    TokenizedText,
    bos_token,
    require_count,
    tokenize_text,
)
from modwright.errors import Refused
from modwright.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Perplexity", "PerplexityRecipe", "evaluating", "perplexity", "position_limit"]

# The float32 copy of the logits is taken in slices of this many numbers (32 MiB).
_SLICE = 1 << 23
_NO_LM = "perplexity needs a causal language model"


@dataclass(frozen=True)
class PerplexityRecipe:
    """What is measured, as a whole: two numbers are comparable when their recipes are equal.

    Attributes:
        data: the text; a string is a packaged name or a path.
        windows: how many windows, from the start of the text.
        length: tokens of a window, the BOS token included.
        stride: text tokens from one window's start to the next one's. None is the text tokens of a
            window, so that windows do not overlap; with a smaller one every window but the first
            counts its last ``stride`` tokens only, the others being context.
        bos: put the tokenizer's BOS token before each window. Without it the first token of a
            window has nothing to be predicted from and is not counted.
        batch_size: windows of a batch; changes speed and memory, not the number.
    """

    data: TextData | str
    windows: int = 6
    length: int = 512
    stride: int | None = None
    bos: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Attributes:
        value: exp of the mean negative log-likelihood of the counted tokens; inf or nan where the
            model's output is not finite.
        nll_per_token: that mean, in nats.
        tokens: how many tokens were counted.
        bits_per_byte: summed negative log-likelihood in bits over the UTF-8 bytes of the text that
            the counted tokens cover; does not depend on the tokenizer's granularity.
        word_perplexity: exp of the same sum over the whitespace-separated words that begin in that
            text; not comparable with ``value``. nan if no word begins there.
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: PerplexityRecipe,
    progress: Progress = SILENT,
) -> Perplexity:
    """Measure how well a causal language model predicts a text.

    Log-probabilities are taken in float32, whatever the model's dtype. The model is put into
    evaluation mode for the while.

    Args:
        model: a transformers model with logits over a vocabulary.
        tokenizer: the model's own.
        recipe: what to measure.
        progress: told of every batch.

    Raises:
        Refused: not a causal language model, too little text, a number outside its range.

    Example:
        ``perplexity(model, tokenizer, PerplexityRecipe("lee")).value``
    """
    _require_vocabulary(model)
    content = recipe.length - recipe.bos
    stride = content if recipe.stride is None else recipe.stride
    require_count("windows", recipe.windows)
    require_count("batch_size", recipe.batch_size)
    require_count("length", recipe.length, least=2, most=position_limit(model))
    require_count("stride", stride, most=content)
    first = bos_token(tokenizer) if recipe.bos else None
    tokenized = tokenize_text(tokenizer, recipe.data, offsets=True)
    tokenized.require(recipe.windows, content, stride)

    starts = [stride * index for index in range(recipe.windows)]
    rows, facts = tokenized.cut(starts, content, first)
    # How many tokens at a window's end count: all that have something before them, or the new ones.
    predicted = recipe.length - 1
    counts = [predicted, *[min(stride, predicted)] * (recipe.windows - 1)]

    with evaluating(model):
        _require_causal(model, rows)
        begin = time.perf_counter()
        nll = _total_nll(model, rows, counts, recipe.batch_size, progress)
        seconds = time.perf_counter() - begin

    spans = [(start + content - count, start + content) for start, count in zip(starts, counts)]
    amounts, how = _text_amounts(tokenizer, tokenized, spans)
    tokens = sum(counts)
    return Perplexity(
        value=_exp(nll / tokens),
        nll_per_token=nll / tokens,
        tokens=tokens,
        bits_per_byte=nll / math.log(2) / amounts[0] if amounts[0] else math.nan,
        word_perplexity=_exp(nll / amounts[1]) if amounts[1] else math.nan,
        recipe={
            **facts,
            "windows": recipe.windows,
            "length": recipe.length,
            "stride": stride,
            "batch_size": recipe.batch_size,
            "unit": "per token",
            "tokens_counted": tokens,
            "bytes_covered": amounts[0],
            "words_covered": amounts[1],
            "covered_text": how,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        seconds=seconds,
    )


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input that the model has positions for; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: a rope buffer that is renewed here must stay usable for training.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _logits(model: PreTrainedModel, ids: Tensor, last: int) -> Tensor:
    """Logits (B, L, V) of the last ``last`` positions; of all where fewer cannot be asked for."""
    accepted = inspect.signature(model.forward).parameters
    wanted = {"use_cache": False, "logits_to_keep": last}
    given = {name: value for name, value in wanted.items() if name in accepted}
    logits = getattr(model(input_ids=ids.to(model.device), **given), "logits", None)
    if logits is None:
        raise Refused(f"{_NO_LM}; {type(model).__name__} gives no logits")
    return logits


def _require_vocabulary(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise Refused(f"{_NO_LM}; {name} is an encoder with a decoder")
    if getattr(model.config.get_text_config(), "vocab_size", None) is None:
        raise Refused(f"{_NO_LM}; {name} has no vocabulary")


def _require_causal(model: PreTrainedModel, rows: Tensor) -> None:
    """Refuse a model without next-token logits, and one that looks ahead.

    The class does not tell: an edit can make a decoder look ahead, and encoders have logits too. So
    the later half of a few tokens is changed, and the logits of the earlier half must not notice.
    """
    name = type(model).__name__
    largest, vocabulary = int(rows.max()), model.config.get_text_config().vocab_size
    if largest >= vocabulary:
        raise Refused(
            f"the text has token id {largest} and {name} a vocabulary of {vocabulary}; give the "
            "model's own tokenizer"
        )
    ids = rows[:1, :16]
    kept = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, kept:] = (changed[:, kept:] + 1) % vocabulary
    before, after = (_logits(model, tokens, ids.shape[1]).float() for tokens in (ids, changed))
    if before.shape[:2] != ids.shape or before.shape[-1] <= largest:
        raise Refused(
            f"{_NO_LM}; {name} gives logits of shape {tuple(before.shape)} for "
            f"{tuple(ids.shape)} tokens of a vocabulary of {vocabulary}"
        )
    before, after = before[:, :kept], after[:, :kept]
    if not (before.isfinite().all() and after.isfinite().all()):
        return
    tolerance = max(1e-5, 4 * torch.finfo(model.dtype).eps) * float(before.abs().max())
    if float((before - after).abs().max()) > tolerance:
        raise Refused(f"{_NO_LM}; in {name} the logits of a token depend on the tokens after it")


def _total_nll(
    model: PreTrainedModel,
    rows: Tensor,
    counts: list[int],
    batch_size: int,
    progress: Progress,
) -> float:
    """Negative log-likelihood in nats, summed over the last ``counts[i]`` tokens of every row i."""
    total = 0.0
    with progress.phase("perplexity", len(rows)) as task:
        for at in range(0, len(rows), batch_size):
            ids, counted = rows[at : at + batch_size], counts[at : at + batch_size]
            logits = _logits(model, ids, max(counted) + 1)
            for row, tokens, count in zip(logits, ids.to(logits.device), counted):
                total += _nll(row[-count - 1 : -1], tokens[-count:])
            task.advance(len(ids))
    return total


def _nll(logits: Tensor, targets: Tensor) -> float:
    size = max(1, _SLICE // logits.shape[-1])
    return sum(
        float(F.cross_entropy(part.float(), wanted, reduction="sum"))
        for part, wanted in zip(logits.split(size), targets.split(size))
    )


def _text_amounts(
    tokenizer: PreTrainedTokenizerBase, tokenized: TokenizedText, spans: list[tuple[int, int]]
) -> tuple[tuple[int, int], str]:
    """UTF-8 bytes and words of the text that token spans cover, and how that text was found."""
    ends, text = tokenized.ends, tokenized.text
    if ends is None:
        pieces = [
            tokenizer.decode(tokenized.ids[start:stop].tolist(), clean_up_tokenization_spaces=False)
            for start, stop in spans
        ]
        words = sum(len(piece.split()) for piece in pieces)
        return (sum(len(piece.encode()) for piece in pieces), words), "counted tokens, decoded"
    word_starts = [word.start() for word in re.finditer(r"\S+", text)]
    size = words = 0
    for start, stop in spans:
        # From the end of the token before, so that spaces between tokens belong to the later one.
        left, right = int(ends[start - 1]) if start else 0, int(ends[stop - 1])
        size += len(text[left:right].encode())
        words += bisect_left(word_starts, right) - bisect_left(word_starts, left)
    return (size, words), "source text from token to token"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
