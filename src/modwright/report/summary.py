"""What happened, in sentences: also where a step did not pay. The rules are named constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from modwright.report.metrics import comparable, differing, ratio
from modwright.report.scores import score_sentences
from modwright.report.speeds import MACS_FALL, speed_sentences

__all__ = [
    "FAR_OUTSIDE",
    "NEARLY_FREE",
    "REPEATS",
    "RULES",
    "SAME",
    "summary_sentences",
]

NEARLY_FREE = 1.02
FAR_OUTSIDE = 2.0
REPEATS = 0.5
SAME = 0.0005
# Headers make files larger than their weights by less than this.
OPENED = 0.05

_WHOLE = "The result"

RULES = (
    (
        "nearly free",
        f"perplexity after / before is at most {NEARLY_FREE}",
    ),
    (
        "far outside the range where text stays usable",
        f"perplexity after / before is above {FAR_OUTSIDE:g}",
    ),
    (
        "no difference seen",
        f"both models ran alternately, and the {100 * CONFIDENCE:.0f} % interval of the ratios of "
        f"neighboring runs covers 1; at least {FEWEST_PAIRS} pairs, else too few",
    ),
    (
        "is faster, is slower",
        "that whole interval lies above 1, below 1",
    ),
    (
        "although MACs fell",
        f"counted MACs fell by more than {share_text(MACS_FALL)}",
    ),
    (
        "did not pay",
        f"perplexity after / before is above {NEARLY_FREE} and neither parameters, bytes on disk "
        "nor MACs fell",
    ),
    (
        "did not pay on disk",
        "parameters fell and bytes on disk did not",
    ),
    (
        "repeats itself",
        f"at least {share_text(REPEATS)} of the sample's four-word runs occur earlier in it",
    ),
    (
        "within the standard error of the difference",
        "a score's change is at most the root of the sum of both squared standard errors",
    ),
    (
        "stayed the same",
        f"the change is smaller than {100 * SAME:.2f} %",
    ),
)


@dataclass(frozen=True)
class _Pair:
    """Two stages to compare, and how a sentence names the second."""

    before: Stage
    after: Stage
    name: str

    def ratio(self, group: str, key: str) -> float | None:
        if not comparable(self.before, self.after, group):
            return None
        return ratio(_value(self.before, group, key), _value(self.after, group, key))

    def values(self, group: str, key: str) -> tuple[float, float]:
        one, two = _value(self.before, group, key), _value(self.after, group, key)
        assert one is not None and two is not None
        return one, two


def _value(stage: Stage, group: str, key: str) -> float | None:
    value: float | None = (getattr(stage, group) or {}).get(key)
    return value


def summary_sentences(report: Report) -> list[str]:
    """What the report says, as sentences in the order in which they matter.

    First the whole, then each step where there are several, then the sample, what of the source was
    left out, and what loads the result. Every sentence names its numbers with their units.

    Example:
        >>> for line in summary_sentences(Report("example", stages=[Stage("before")])):
        ...     print(line)
        Nothing was changed: these are the measurements of the model as it came.
        Perplexity was not measured, so nothing is said about quality.
    """
    whole = _Pair(report.before, report.after, _WHOLE)
    steps = [
        _Pair(one, two, f"Step {two.name}") for one, two in zip(report.stages, report.stages[1:])
    ]
    lines: list[str] = []
    if not steps:
        lines.append("Nothing was changed: these are the measurements of the model as it came.")
    lines += _say(whole, _size)
    lines += _opened(report)
    lines += _say(whole, _quality, _agreement, _scores)
    lines += _say(whole, *_PAY)
    lines += _say(whole, _speed)
    if len(steps) > 1:
        for step in steps:
            lines += _say(step, _quality_of_step, *_PAY, _speed_missed)
    for stage in report.stages:
        lines += _sample(stage)
    lines += report.before.notes
    if steps:
        lines += _loading(report.after)
    return lines


_Rule = Callable[[_Pair], Iterator[str]]


def _say(pair: _Pair, *rules: _Rule) -> Iterator[str]:
    for rule in rules:
        yield from rule(pair)


def _size(pair: _Pair) -> Iterator[str]:
    if pair.before is pair.after:
        return
    parts = []
    parameters = pair.ratio("cost", "parameters")
    if parameters is not None:
        one, two = pair.values("cost", "parameters")
        parts.append(
            f"{count_text(two)} parameters instead of {count_text(one)} "
            f"({_by(parameters, 'fewer', 'more')})"
        )
    stored = pair.ratio("cost", "stored_bytes")
    if stored is not None:
        one, two = pair.values("cost", "stored_bytes")
        parts.append(
            f"{bytes_text(two)} of weights on disk instead of {bytes_text(one)} "
            f"({_by(stored, 'smaller', 'larger')})"
        )
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
    if pair.after.quality is None:
        if pair.after.agreement is None and pair.after.harness is None:
            yield "Perplexity was not measured, so nothing is said about quality."
        return
    if pair.before is pair.after and not pair.after.is_broken:
        return
    yield from _perplexity(pair)


def _quality_of_step(pair: _Pair) -> Iterator[str]:
    if pair.after.quality is not None:
        yield from _perplexity(pair)


def _perplexity(pair: _Pair) -> Iterator[str]:
    subject = "Perplexity" if pair.name == _WHOLE else f"{pair.name}: perplexity"
    if pair.after.is_broken:
        yield (
            f"{pair.name} is broken: its perplexity is not a finite number, so its output holds "
            "NaN or infinite values or gives a token of the text no probability at all."
        )
        return
    if pair.before.perplexity is None:
        why = "is not a finite number" if pair.before.is_broken else "was not measured"
        yield f"{subject} before {why}, so the change is not known."
        return
    odd = differing(pair.before, pair.after, "quality")
    if odd:
        yield (
            f"{subject} before and after cannot be compared: it was measured differently "
            f"({', '.join(odd)})."
        )
        return
    change = pair.ratio("quality", "perplexity")
    if change is None:
        return
    one, two = pair.values("quality", "perplexity")
    if abs(change - 1) < SAME:
        yield f"{subject} stayed at {number_text(two)} per token{_for_size(pair)}."
        return
    line = (
        f"{subject} {'rose' if change > 1 else 'fell'} from {number_text(one)} to "
        f"{number_text(two)} per token, by a factor of {number_text(change)},{_for_size(pair)}"
    )
    if 1 < change <= NEARLY_FREE:
        line += ": nearly free"
    if change > FAR_OUTSIDE:
        line += (
            ": far outside the range where text stays usable; heal it by fine-tuning or choose less"
        )
    yield f"{line}."


def _agreement(pair: _Pair) -> Iterator[str]:
    near = pair.after.agreement
    if near is None:
        return
    said = f"at {count_text(near.get('tokens') or 0)} tokens of text"
    if not near["finite"]:
        yield (
            f"How far the result is from the model as it came cannot be said: {said} an output "
            "is not finite, or gives no probability where the other gives some."
        )
        return
    if near.get("cosine") is not None:
        yield (
            f"The result's last hidden states and those of the model as it came have a mean cosine "
            f"of {score_text(near['cosine'])} {said}."
        )
    if near.get("kl") is not None:
        same = near.get("top1")
        first = (
            ""
            if same is None
            else f", and both put the same token first at {share_text(same)} of them"
        )
        yield (
            f"The result's predictions are {nats_text(near['kl'])} nats from those of the model as "
            f"it came (mean KL {said}){first}."
        )


def _scores(pair: _Pair) -> Iterator[str]:
    yield from score_sentences(pair.before, pair.after)


def _for_size(pair: _Pair) -> str:
    parameters = pair.ratio("cost", "parameters")
    if parameters is None:
        return " for a model whose parameters were not counted"
    if abs(parameters - 1) < SAME:
        return " for a model with as many parameters"
    return f" for a model with {_by(parameters, 'fewer', 'more')} parameters"


def _larger(pair: _Pair) -> Iterator[str]:
    kinds = (
        ("stored_bytes", "weights on disk"),
        ("kv_bytes", "KV cache"),
        ("activation_bytes", "activations"),
    )
    for key, what in kinds:
        change = pair.ratio("cost", key)
        if change is not None and change > 1 + SAME:
            one, two = pair.values("cost", key)
            yield (
                f"{pair.name} needs more bytes: {what} grew from {bytes_text(one)} to "
                f"{bytes_text(two)} ({_by(change, 'smaller', 'larger')})."
            )


def _not_smaller_on_disk(pair: _Pair) -> Iterator[str]:
    parameters, stored = pair.ratio("cost", "parameters"), pair.ratio("cost", "stored_bytes")
    if parameters is None or stored is None:
        return
    if parameters < 1 - SAME and stored >= 1 - SAME:
        yield (
            f"{pair.name} did not pay on disk: it has {_by(parameters, 'fewer', 'more')} "
            f"parameters, and {bytes_text(pair.values('cost', 'stored_bytes')[1])} of weights are "
            "no smaller."
        )


def _no_gain(pair: _Pair) -> Iterator[str]:
    quality = pair.ratio("quality", "perplexity")
    costs = {
        key: change
        for key in ("parameters", "stored_bytes", "prefill_macs", "decode_macs")
        if (change := pair.ratio("cost", key)) is not None
    }
    if quality is None or quality <= NEARLY_FREE or not costs:
        return
    if all(change >= 1 - SAME for change in costs.values()):
        yield (
            f"{pair.name} did not pay: perplexity rose by a factor of {number_text(quality)}, and "
            "neither parameters, bytes on disk nor MACs fell."
        )


_PAY: tuple[_Rule, ...] = (_larger, _not_smaller_on_disk, _no_gain)


def _speed(pair: _Pair) -> Iterator[str]:
    if pair.before is not pair.after:
        yield from speed_sentences(pair.before, pair.after)


def _speed_missed(pair: _Pair) -> Iterator[str]:
    yield from speed_sentences(pair.before, pair.after, pair.name, missed=True)


def _sample(stage: Stage) -> Iterator[str]:
    if stage.sample is None:
        return
    where = "before" if stage.method is None else f"after step {stage.name}"
    if not str(stage.sample.get("text") or "").strip():
        yield f"The sample written {where} is empty: 0 words followed the prompt."
        return
    share = stage.sample.get("repetition")
    if share is not None and share >= REPEATS:
        yield (
            f"The sample repeats itself: {share_text(share)} of the four-word runs written "
            f"{where} occur earlier in the same text."
        )


def _loading(stage: Stage) -> Iterator[str]:
    if stage.plain:
        yield "The result is plain: stock transformers loads it."
    else:
        yield (
            "The result is not plain: stock transformers does not have its layers, and it loads "
            "after `import modwright`."
        )


def _by(change: float, less: str, more: str) -> str:
    if abs(change - 1) < SAME:
        return "unchanged"
    return f"{share_text(abs(change - 1))} {less if change < 1 else more}"
