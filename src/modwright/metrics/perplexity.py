"""Perplexity of a causal language model on a named text, as a number that carries its recipe."""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.formatting import interval_text, number_text
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.text import TokenizedText, tokenizer_of
from modwright.metrics.column import Column, StageLike, differing
from modwright.metrics.forward import (
    PerplexityRecipe,
    call,
    cut_windows,
    dtype_of,
    position_limit,
    require_causal,
    require_vocabulary,
)
from modwright.metrics.interval import mean_interval
from modwright.metrics.registry import Subject, metric
from modwright.metrics.windows import WindowOptions
from modwright.metrics.words import SAME, changed_by, cost_change

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FAR_OUTSIDE", "NEARLY_FREE", "Perplexity", "PerplexityMetric", "PerplexityRecipe"]
__all__ += ["perplexity", "position_limit", "why_no_perplexity"]

NEARLY_FREE = 1.02
FAR_OUTSIDE = 2.0

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
        interval: ``low``, ``high`` and ``windows``: where the value lies with 95 % confidence, as
            :func:`~modwright.metrics.interval.mean_interval` finds it from as many windows; None
            where they are too few.
        by_window: ``nll`` and ``counts``, the sum and the number of tokens of each window.
    """

    value: float
    nll_per_token: float
    tokens: int
    bits_per_byte: float
    word_perplexity: float
    recipe: dict[str, Any]
    seconds: float
    interval: dict[str, Any] | None = None
    by_window: dict[str, list[float]] | None = None

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
        each = _window_nlls(model, windows.rows, counts, after, recipe.batch_size, progress)
        seconds = time.perf_counter() - begin

    ends = [start + windows.content for start in windows.starts]
    spans = [(end - count, end) for end, count in zip(ends, counts)]
    size, words, how = _text_amounts(tokenizer, windows.text, spans)
    nll, tokens = sum(each), sum(counts)
    sure = mean_interval(each, counts)
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
        interval=None if sure is None else _exponentiated(asdict(sure)),
        by_window={"nll": each, "counts": [float(count) for count in counts]},
    )


def _exponentiated(sure: Mapping[str, Any]) -> dict[str, Any]:
    return {**sure, "low": _exp(sure["low"]), "high": _exp(sure["high"])}


def _window_nlls(
    model: PreTrainedModel,
    rows: Tensor,
    counts: list[int],
    after: int,
    batch_size: int,
    progress: Progress,
) -> list[float]:
    """Negative log-likelihood in nats of every row i, summed over ``counts[i]`` tokens.

    They are the last ones of the row before its ``after`` special tokens.
    """
    each = []
    with progress.phase("perplexity", len(rows)) as task:
        for at in range(0, len(rows), batch_size):
            ids, counted = rows[at : at + batch_size], counts[at : at + batch_size]
            logits = call(model, ids, logits_to_keep=max(counted) + after + 1).logits
            for row, tokens, count in zip(logits, ids.to(logits.device), counted):
                start, stop = len(tokens) - after - count, len(tokens) - after
                shift = len(row) - len(tokens)  # a model that gave fewer rows gave the last ones
                size = max(1, _SLICE // row.shape[-1])
                parts = row[start + shift - 1 : stop + shift - 1].split(size)
                each.append(
                    sum(
                        float(F.cross_entropy(part.float(), wanted, reduction="sum"))
                        for part, wanted in zip(parts, tokens[start:stop].split(size))
                    )
                )
            task.advance(len(ids))
    return each


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


@metric(
    "perplexity",
    unit="per token",
    direction="lower",
    by_default=True,
    of_text=True,
    old_field="quality",
    order=10,
    columns=(
        Column(
            "perplexity",
            "perplexity",
            "Perplexity",
            key="value",
            headline="always",
            by_window="nll",
            meaning="About how many equally likely tokens the model hesitates between at each "
            "token of a text. Lower is better; only numbers measured the same way can be compared.",
        ),
    ),
    rules=(
        ("nearly free", f"perplexity after / before is at most {NEARLY_FREE}"),
        (
            "far outside the range where text stays usable",
            f"perplexity after / before is above {FAR_OUTSIDE:g}",
        ),
        (
            "did not pay",
            f"perplexity after / before is above {NEARLY_FREE} and neither parameters, bytes on "
            "disk nor MACs fell",
        ),
        (
            "within noise",
            "both were measured on the same windows, and the 95 % interval of the change, from "
            "windows drawn again with replacement, covers no change",
        ),
    ),
)
@dataclass(frozen=True)
class PerplexityMetric(WindowOptions):
    """Perplexity of a causal language model on a held-out text."""

    def unsupported(self, subject: Subject) -> str | None:
        return why_no_perplexity(subject)

    def measure(self, subject: Subject, progress: Progress = SILENT) -> Perplexity:
        return perplexity(subject.model, subject.tokenizer, self.text_windows(), progress)

    @classmethod
    def of_old(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(values)
        return {"value": given.pop("perplexity"), **given} if "perplexity" in given else given

    @classmethod
    def described(cls, values: Mapping[str, Any]) -> str:
        return _on_text("perplexity", values)

    @classmethod
    def sentences(cls, before: StageLike, after: StageLike) -> Iterator[str]:
        yield from _said(before, after, "The result", "Perplexity")

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        yield from _said(before, after, name, f"{name}: perplexity")

    @classmethod
    def worsened(cls, before: StageLike, after: StageLike) -> str | None:
        found = _change(before, after)
        if found is None or found[0] <= NEARLY_FREE or _COLUMN.is_within_noise(before, after):
            return None
        return f"perplexity rose by a factor of {number_text(found[0])}"

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        value, sure = values.get("value"), values.get("interval")
        if value is None:
            yield "perplexity is not a finite number"
            return
        line = f"perplexity {value:.4f} per token over {values.get('tokens', 0):,} tokens"
        if sure:
            line += f"; {interval_text(sure['low'], sure['high'])} with 95 % confidence"
        yield line
        if values.get("bits_per_byte") is not None:
            yield (
                f"  {values['bits_per_byte']:.4f} bits per byte; "
                f"{values.get('word_perplexity') or math.nan:,.1f} per word"
            )


def why_no_perplexity(subject: Subject) -> str | None:
    """Why a model cannot have one, in a few words after "it"; None where it can."""
    if subject.reads_images:
        return f"is measured on text, and {subject.name} reads images"
    if subject.tokenizer is None:
        return f"is measured on text, and {subject.name} has no tokenizer"
    if not subject.writes_text:
        return f"needs a causal language model, and {subject.name} is none"
    return None


def _on_text(what: str, values: Mapping[str, Any]) -> str:
    data = (values.get("recipe") or {}).get("data")
    return f"{what} on one text" + (f" ({data})" if data else "")


_COLUMN = PerplexityMetric.columns[0]


def _change(before: StageLike, after: StageLike) -> tuple[float, float, float] | None:
    one, two, change = _COLUMN.of(before), _COLUMN.of(after), _COLUMN.shift(before, after)
    if change is None or one is None or two is None or differing(before, after, "perplexity"):
        return None
    return change, one, two


def _said(before: StageLike, after: StageLike, name: str, subject: str) -> Iterator[str]:
    """What became of perplexity; a sentence names the second stage by ``name``."""
    measured = [_COLUMN.stored(stage) for stage in (before, after)]
    broken = [values.get("finite") is False for values in measured]
    if not measured[1]:
        return
    if broken[1]:
        yield (
            f"{name} is broken: its perplexity is not a finite number, so its output holds "
            "NaN or infinite values or gives a token of the text no probability at all."
        )
    elif before is after:
        return
    elif _COLUMN.of(before) is None:
        why = "is not a finite number" if broken[0] else "was not measured"
        yield f"{subject} before {why}, so the change is not known."
    elif odd := differing(before, after, "perplexity"):
        yield (
            f"{subject} before and after cannot be compared: it was measured differently "
            f"({', '.join(odd)})."
        )
    elif found := _change(before, after):
        yield f"{subject} {_course(*found, _for_size(before, after), _noise(before, after))}."


def _noise(before: StageLike, after: StageLike) -> tuple[str, bool]:
    """The interval of the factor, in brackets, and whether it covers 1."""
    sure = _COLUMN.interval(before, after)
    if sure is None:
        return "", False
    ends = interval_text(_exp(sure.low), _exp(sure.high))
    return f" ({ends} over {sure.windows} windows)", _COLUMN.is_within_noise(before, after)


def _course(change: float, one: float, two: float, size: str, noise: tuple[str, bool]) -> str:
    if abs(change - 1) < SAME:
        return f"stayed at {number_text(two)} per token{size}"
    sure, within = noise
    line = (
        f"{'rose' if change > 1 else 'fell'} from {number_text(one)} to {number_text(two)} per "
        f"token, by a factor of {number_text(change)}{sure},{size}"
    )
    if within:
        return f"{line}: within noise, no difference is seen"
    if 1 < change <= NEARLY_FREE:
        return f"{line}: nearly free"
    if change <= FAR_OUTSIDE:
        return line
    usable = "far outside the range where text stays usable"
    return f"{line}: {usable}; heal it by fine-tuning or choose less"


def _for_size(before: StageLike, after: StageLike) -> str:
    found = cost_change(before, after, "parameters")
    if found is None:
        return " for a model whose parameters were not counted"
    if abs(found[0] - 1) < SAME:
        return " for a model with as many parameters"
    return f" for a model with {changed_by(found[0], 'fewer', 'more')} parameters"
