"""What happened, in sentences: also where a step did not pay. The rules are named constants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

from modwright.core.formatting import (
    bytes_text,
    count_text,
    nats_text,
    number_text,
    score_text,
    share_text,
)
from modwright.core.paired import CONFIDENCE, FEWEST_PAIRS
from modwright.report.data import Report, Stage
from modwright.report.metrics import differing, ratio
from modwright.report.scores import score_sentences
from modwright.report.speeds import MACS_FALL, missed_sentences, speed_sentences

__all__ = ["FAR_OUTSIDE", "NEARLY_FREE", "REPEATS", "RULES", "SAME", "summary_sentences"]

NEARLY_FREE = 1.02
FAR_OUTSIDE = 2.0
REPEATS = 0.5
SAME = 0.0005
# Headers make files larger than their weights by less than this.
OPENED = 0.05

RULES = (
    ("nearly free", f"perplexity after / before is at most {NEARLY_FREE}"),
    (
        "far outside the range where text stays usable",
        f"perplexity after / before is above {FAR_OUTSIDE:g}",
    ),
    (
        "no difference seen",
        f"both models ran alternately, and the {100 * CONFIDENCE:.0f} % interval of the ratios of "
        f"neighboring runs covers 1; at least {FEWEST_PAIRS} pairs, else too few",
    ),
    ("is faster, is slower", "that whole interval lies above 1, below 1"),
    ("although MACs fell", f"counted MACs fell by more than {share_text(MACS_FALL)}"),
    (
        "did not pay",
        f"perplexity after / before is above {NEARLY_FREE} and neither parameters, bytes on disk "
        "nor MACs fell",
    ),
    ("did not pay on disk", "parameters fell and bytes on disk did not"),
    (
        "repeats itself",
        f"at least {share_text(REPEATS)} of the sample's 4-grams are repeated",
    ),
    (
        "within the standard error of the difference",
        "a score's change is at most the root of the sum of both squared standard errors",
    ),
    ("stayed the same", f"the change is smaller than {100 * SAME:.2f} %"),
)


class _Pair(NamedTuple):
    """Two stages to compare, and how a sentence names the second."""

    before: Stage
    after: Stage
    name: str = "The result"
    perplexity: str = "Perplexity"

    def change(self, key: str, group: str = "cost") -> tuple[float, float, float] | None:
        """After / before, with both numbers; None where they cannot be compared."""
        numbers: list[Any] = [(getattr(stage, group) or {}).get(key) for stage in self[:2]]
        one, two = numbers
        change = None if differing(*self[:2], group) else ratio(one, two)
        return None if change is None else (change, one, two)


def summary_sentences(report: Report) -> list[str]:
    """What the report says, as sentences in the order in which they matter.

    First the whole, then each step where there are several, then the sample, what of the source was
    left out, and what loads the result. Every sentence names its numbers with their units.

    Example:
        >>> for line in summary_sentences(Report("example", stages=[Stage("before")])):
        ...     print(line)
        Nothing was changed: these are the measurements of the baseline.
        Perplexity was not measured, so nothing is said about quality.
    """
    whole = _Pair(report.before, report.after)
    is_changed = len(report.stages) > 1
    said: list[Iterator[str]] = [_opened(report), _quality(whole), _agreement(report.after)]
    said += [score_sentences(*whole[:2]), _pay(whole)]
    if is_changed:
        said = [_size(whole), *said, speed_sentences(*whole[:2])]
    steps = list(pairwise(report.stages))
    for one, two in steps[len(steps) == 1 :]:  # one step alone is the whole
        name = f"Step {two.name}"
        step = _Pair(one, two, name, f"{name}: perplexity")
        said += [_quality(step), _pay(step), missed_sentences(one, two, name)]
    said += map(_sample, report.stages)
    lines = [*chain.from_iterable(said), *report.before.notes]
    if not is_changed:
        start = "Nothing was changed: these are the measurements of the baseline."
        return [start, *lines]
    loading = (
        "plain: stock transformers loads it."
        if report.after.plain
        else "not plain: stock transformers does not have its layers, and it loads after `import "
        "modwright`."
    )
    return [*lines, f"The result is {loading}"]


def _size(pair: _Pair) -> Iterator[str]:
    parts = []
    for key, text, what, less, more in (
        ("parameters", count_text, "parameters", "fewer", "more"),
        ("stored_bytes", bytes_text, "of weights on disk", "smaller", "larger"),
    ):
        if found := pair.change(key):
            change, one, two = found
            parts.append(f"{text(two)} {what} instead of {text(one)} ({_by(change, less, more)})")
    if parts:
        yield f"{pair.name} has {' and '.join(parts)}."


def _opened(report: Report) -> Iterator[str]:
    """The size of the file that was opened, where it is not that of the weights."""
    opened, before = report.model.get("opened_bytes"), report.before.cost.get("stored_bytes")
    after = report.after.cost.get("stored_bytes")
    if not opened or not before or not after or abs(before / opened - 1) < OPENED:
        return
    name = report.model.get("opened_file") or "the file that was opened"
    dtype = report.environment.get("dtype")
    line = (
        f"The file that was opened, {name}, has {bytes_text(opened)}; its weights take "
        f"{bytes_text(before)} {f'as {dtype}' if dtype else 'here'}"
    )
    if report.before is not report.after:
        line += f", and the result is {number_text(after / opened)} times as large as that file"
    yield f"{line}."


def _quality(pair: _Pair) -> Iterator[str]:
    before, after, name, subject = pair
    if after.quality is None:
        is_whole = subject == "Perplexity"
        if is_whole and after.agreement is None and after.harness is None:
            yield "Perplexity was not measured, so nothing is said about quality."
    elif after.is_broken:
        yield (
            f"{name} is broken: its perplexity is not a finite number, so its output holds "
            "NaN or infinite values or gives a token of the text no probability at all."
        )
    elif before is after:
        return
    elif before.perplexity is None:
        why = "is not a finite number" if before.is_broken else "was not measured"
        yield f"{subject} before {why}, so the change is not known."
    elif odd := differing(before, after, "quality"):
        yield (
            f"{subject} before and after cannot be compared: it was measured differently "
            f"({', '.join(odd)})."
        )
    elif found := pair.change("perplexity", "quality"):
        yield f"{subject} {_course(*found, _for_size(pair))}."


def _course(change: float, one: float, two: float, size: str) -> str:
    if abs(change - 1) < SAME:
        return f"stayed at {number_text(two)} per token{size}"
    line = (
        f"{'rose' if change > 1 else 'fell'} from {number_text(one)} to {number_text(two)} per "
        f"token, by a factor of {number_text(change)},{size}"
    )
    if 1 < change <= NEARLY_FREE:
        return f"{line}: nearly free"
    if change <= FAR_OUTSIDE:
        return line
    usable = "far outside the range where text stays usable"
    return f"{line}: {usable}; heal it by fine-tuning or choose less"


def _for_size(pair: _Pair) -> str:
    found = pair.change("parameters")
    if found is None:
        return " for a model whose parameters were not counted"
    if abs(found[0] - 1) < SAME:
        return " for a model with as many parameters"
    return f" for a model with {_by(found[0], 'fewer', 'more')} parameters"


def _agreement(after: Stage) -> Iterator[str]:
    near = after.agreement
    if near is None:
        return
    said = f"at {count_text(near.get('tokens') or 0)} tokens of text"
    if not near["finite"]:
        yield (
            f"How far the result is from the baseline cannot be said: {said} an output "
            "is not finite, or gives no probability where the other gives some."
        )
        return
    if near.get("cosine") is not None:
        yield (
            f"The result's last hidden states and those of the baseline have a mean cosine "
            f"of {score_text(near['cosine'])} {said}."
        )
    if near.get("kl") is not None:
        line = (
            f"The result's predictions are {nats_text(near['kl'])} nats from those of the baseline "
            f"(mean KL {said})"
        )
        if near.get("top1") is not None:
            line += f", and both put the same token first at {share_text(near['top1'])} of them"
        yield f"{line}."


def _pay(pair: _Pair) -> Iterator[str]:
    """What grew, and what was paid without a gain."""
    for key, what in (
        ("stored_bytes", "weights on disk"),
        ("kv_bytes", "KV cache"),
        ("state_bytes", "recurrent state"),
        ("activation_bytes", "activations"),
    ):
        found = pair.change(key)
        if found is not None and found[0] > 1 + SAME:
            yield (
                f"{pair.name} needs more bytes: {what} grew from {bytes_text(found[1])} to "
                f"{bytes_text(found[2])} ({_by(found[0], 'smaller', 'larger')})."
            )
    keys = ("parameters", "stored_bytes", "prefill_macs", "decode_macs")
    costs = {key: found for key in keys if (found := pair.change(key))}
    fewer, stored = costs.get("parameters"), costs.get("stored_bytes")
    if fewer and stored and fewer[0] < 1 - SAME and stored[0] >= 1 - SAME:
        yield (
            f"{pair.name} did not pay on disk: it has {_by(fewer[0], 'fewer', 'more')} "
            f"parameters, and {bytes_text(stored[2])} of weights are no smaller."
        )
    quality = pair.change("perplexity", "quality")
    none_fell = costs and all(change >= 1 - SAME for change, _, _ in costs.values())
    if quality and quality[0] > NEARLY_FREE and none_fell:
        yield (
            f"{pair.name} did not pay: perplexity rose by a factor of {number_text(quality[0])}, "
            "and neither parameters, bytes on disk nor MACs fell."
        )


def _sample(stage: Stage) -> Iterator[str]:
    if stage.sample is None:
        return
    where = "before" if stage.method is None else f"after step {stage.name}"
    share = stage.sample.get("repetition")
    if not str(stage.sample.get("text") or "").strip():
        yield f"The sample written {where} is empty: 0 words followed the prompt."
    elif share is not None and share >= REPEATS:
        yield (
            f"The sample repeats itself: {share_text(share)} of the 4-grams written "
            f"{where} occur earlier in the same text."
        )


def _by(change: float, less: str, more: str) -> str:
    if abs(change - 1) < SAME:
        return "unchanged"
    return f"{share_text(abs(change - 1))} {less if change < 1 else more}"
