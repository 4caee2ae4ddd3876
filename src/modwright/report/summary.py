"""What happened, in sentences: also where a step did not pay. The rules are named constants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise

from modwright.core.formatting import bytes_text, count_text, counted_text, number_text
from modwright.metrics.registry import in_order
from modwright.metrics.words import SAME, changed_by, cost_change
from modwright.report.data import Report, Stage

__all__ = ["summary_rules", "summary_sentences"]

# Headers make files larger than their weights by less than this.
OPENED = 0.05

_RULES = (
    ("did not pay on disk", "parameters fell and bytes on disk did not"),
    ("stayed the same", f"the change is smaller than {100 * SAME:.2f} %"),
)


def summary_rules() -> list[tuple[str, str]]:
    """The words of the sentences, and what they mean: those of each metric, then our own."""
    return [*chain.from_iterable(metric.rules for metric in in_order()), *_RULES]


def summary_sentences(report: Report) -> list[str]:
    """What the report says, as sentences in the order in which they matter.

    First the whole, then each step where there are several, then the sample, what of the source was
    left out, and what loads the result. Every sentence names its numbers with their units.

    Example:
        >>> for line in summary_sentences(Report("example", stages=[Stage("before")])):
        ...     print(line)
        Nothing was changed: these are the measurements of the baseline.
        Quality was not measured, so nothing is said about it.
    """
    before, after = report.before, report.after
    is_changed = before is not after
    quality = [metric for metric in in_order() if metric.is_quality]
    others = [metric for metric in in_order() if not metric.is_quality]
    said: list[Iterator[str]] = [_opened(report), _unknown(after)]
    said += [metric.sentences(before, after) for metric in quality]
    said.append(_pay(before, after, "The result"))
    if is_changed:
        said = [_size(before, after), *said]
        said += [metric.sentences(before, after) for metric in others]
    steps = list(pairwise(report.stages))
    said += [_values(two, f"Step {two.name}") for _, two in steps]
    for one, two in steps[len(steps) == 1 :]:  # one step alone is the whole
        name = f"Step {two.name}"
        said += [metric.step_sentences(one, two, name) for metric in quality]
        said.append(_pay(one, two, name))
        said += [metric.step_sentences(one, two, name) for metric in others]
    said += [metric.stage_sentences(stage) for stage in report.stages for metric in in_order()]
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


def _size(before: Stage, after: Stage) -> Iterator[str]:
    parts = []
    for key, text, what, less, more in (
        ("parameters", count_text, "parameters", "fewer", "more"),
        ("stored_bytes", bytes_text, "of weights on disk", "smaller", "larger"),
    ):
        if found := cost_change(before, after, key):
            change, one, two = found
            how = changed_by(change, less, more)
            parts.append(f"{text(two)} {what} instead of {text(one)} ({how})")
    if parts:
        yield f"The result has {' and '.join(parts)}."


def _values(stage: Stage, name: str) -> Iterator[str]:
    """Of a step that wrote numbers and left the structure as it was."""
    counted = stage.accounting
    if counted.get("masked"):
        yield (
            f"{name} masked {counted_text(counted['masked'], 'tensor')}: their zeros are stored "
            "and computed as before, and stay zero in a training."
        )
    elif counted.get("changed") and not counted.get("added") and not counted.get("removed"):
        yield f"{name} changed numbers of {counted_text(counted['changed'], 'tensor')}."


def _unknown(after: Stage) -> Iterator[str]:
    if not any(metric.is_quality and metric.name in after.measured for metric in in_order()):
        yield "Quality was not measured, so nothing is said about it."


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


def _pay(before: Stage, after: Stage, name: str) -> Iterator[str]:
    """What grew, and what was paid without a gain; sentences call the second stage by ``name``."""
    for key, what in (
        ("stored_bytes", "weights on disk"),
        ("kv_bytes", "KV cache"),
        ("state_bytes", "recurrent state"),
        ("activation_bytes", "activations"),
    ):
        found = cost_change(before, after, key)
        if found is not None and found[0] > 1 + SAME:
            yield (
                f"{name} needs more bytes: {what} grew from {bytes_text(found[1])} to "
                f"{bytes_text(found[2])} ({changed_by(found[0], 'smaller', 'larger')})."
            )
    keys = ("parameters", "stored_bytes", "prefill_macs", "decode_macs")
    costs = {key: found for key in keys if (found := cost_change(before, after, key))}
    fewer, stored = costs.get("parameters"), costs.get("stored_bytes")
    if fewer and stored and fewer[0] < 1 - SAME and stored[0] >= 1 - SAME:
        yield (
            f"{name} did not pay on disk: it has {changed_by(fewer[0], 'fewer', 'more')} "
            f"parameters, and {bytes_text(stored[2])} of weights are no smaller."
        )
    worse = (metric.worsened(before, after) for metric in in_order())
    none_fell = costs and all(change >= 1 - SAME for change, _, _ in costs.values())
    if none_fell and (how := next(filter(None, worse), None)):
        yield f"{name} did not pay: {how}, and neither parameters, bytes on disk nor MACs fell."
