"""What was measured of speed, in words: how sure a difference is, and where none was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from modwright.core.formatting import MISSING, interval_text, number_text, share_text
from modwright.core.paired import PairedRatio
from modwright.metrics.column import Column, StageLike, differing, ratio

__all__ = ["MACS_FALL", "SpeedColumn", "missed_sentences", "paired_ratio", "speed_cells"]
__all__ += ["speed_sentences"]

MACS_FALL = 0.03
_SAME = PairedRatio(1.0, 1.0, 1.0, 0)


def _speed(stage: StageLike) -> Mapping[str, Any]:
    return stage.measured.get("speed") or {}


class Phase(NamedTuple):
    """A phase of a model's work, and what its time depends on: first of all its MACs."""

    name: str
    doing: str
    work: tuple[str, ...]

    def rate(self, stage: StageLike) -> float | None:
        """Tokens per second."""
        return _speed(stage).get(f"{self.name}_tokens_per_second")


_PHASES = (
    Phase("decode", "decoding", ("decode_macs", "stored_bytes", "kv_bytes")),
    Phase("prefill", "prefill", ("prefill_macs", "stored_bytes", "activation_bytes")),
)


def paired_ratio(before: StageLike, after: StageLike, phase: str) -> PairedRatio | None:
    """How many times as fast the second stage is; None where pairs of runs were not timed.

    Two stages after steps were both timed against the baseline: their intervals are divided
    one by the other, which makes the result wider than it has to be, and never too narrow.
    """
    one, two = _against_first(before, phase), _against_first(after, phase)
    if one is None or two is None or differing(before, after, "speed"):
        return None
    pairs = min((r.pairs for r in (one, two) if r is not _SAME), default=0)
    return PairedRatio(two.median / one.median, two.low / one.high, two.high / one.low, pairs)


def _against_first(stage: StageLike, phase: str) -> PairedRatio | None:
    speed = _speed(stage)
    if stage.method is None or speed.get("unchanged"):
        return _SAME
    told = (speed.get("ratios") or {}).get(phase)
    return None if told is None else PairedRatio(**told)


def _change(before: StageLike, after: StageLike, key: str) -> float | None:
    if differing(before, after, "cost"):
        return None
    return ratio(before.cost.get(key), after.cost.get(key))


def _beyond(before: StageLike, after: StageLike, phase: Phase, found: PairedRatio) -> float | None:
    """How many times as fast a phase can become when only the counted work takes time.

    None where that is not known, or the interval reaches down to it.
    """
    falls = [1 / change for key in phase.work if (change := _change(before, after, key))]
    return max(*falls, 1.0) if falls and found.low > max(*falls, 1.0) else None


class SpeedColumn(Column):
    """A column of tokens per second: it names a change only where a difference was seen."""

    def shift(self, before: StageLike, stage: StageLike) -> float | None:
        phase = next(phase for phase in _PHASES if self.name.startswith(phase.name))
        found = paired_ratio(before, stage, phase.name)
        if found is None or not found.differs or _beyond(before, stage, phase, found):
            return None
        return found.median

    def has_headline(self, before: StageLike, stage: StageLike) -> bool:
        """Also where nothing was compared: then the number, or that it was not measured."""
        return (
            before is stage
            or MISSING in (self.cell(before), self.cell(stage))
            or bool(self.summary_sentence(before, stage))
        )


def speed_sentences(before: StageLike, after: StageLike) -> Iterator[str]:
    """One sentence per phase: faster, slower, or no difference seen, with the interval."""
    if not _speed(after) or not _speed(before):
        yield "Speed was not timed before and after; fewer MACs alone do not mean less time."
    elif odd := differing(before, after, "speed"):
        yield (
            "Speeds before and after cannot be compared: they were timed differently "
            f"({', '.join(odd)})."
        )
    elif before.method is None and _speed(after).get("unchanged"):
        yield (
            "Speed: structure and weights are those of the baseline, so nothing was timed again."
        )
    else:
        for phase in _PHASES:
            if phase.rate(before) is not None and phase.rate(after) is not None:
                yield _sentence(before, after, phase.doing.capitalize(), phase)


def missed_sentences(before: StageLike, after: StageLike, name: str) -> Iterator[str]:
    """As :func:`speed_sentences`, of what needs fewer MACs and is not faster; it is called so."""
    for phase in _PHASES:
        if phase.rate(before) is None or phase.rate(after) is None:
            continue
        found = paired_ratio(before, after, phase.name)
        is_missed = found is not None and found.is_settled and found.low <= 1
        if is_missed and _fall(before, after, phase) is not None:
            yield _sentence(before, after, f"{name}: {phase.doing}", phase)


def speed_cells(first: StageLike, stage: StageLike) -> tuple[str, str]:
    """Prefill and decoding of a stage for a narrow table.

    Tokens per second, or beside the first stage the interval of the ratio: ``× 0.93–1.08``.
    """
    decode, prefill = (_cell(first, stage, phase) for phase in _PHASES)
    return prefill, decode


def _cell(first: StageLike, stage: StageLike, phase: Phase) -> str:
    rate = phase.rate(stage)
    if rate is None:
        return MISSING
    found = None if first is stage else paired_ratio(first, stage, phase.name)
    if found is None:
        return number_text(rate)
    return f"× {interval_text(found.low, found.high)}" if found.pairs else "unchanged"


def _fall(before: StageLike, after: StageLike, phase: Phase) -> float | None:
    """The share by which the MACs of a phase fell, where that is more than a little."""
    macs = _change(before, after, phase.work[0])
    return 1 - macs if macs is not None and macs < 1 - MACS_FALL else None


def _sentence(before: StageLike, after: StageLike, start: str, phase: Phase) -> str:
    one, two = (number_text(phase.rate(stage) or 0.0) for stage in (before, after))
    timed = f"{start} was timed at {two} tokens/s instead of {one}"
    found = paired_ratio(before, after, phase.name)
    if found is None:
        return f"{timed}; how far such times spread was not recorded, so nothing follows from them."
    told = f"{interval_text(found.low, found.high)} times as fast, {found.pairs} pairs of runs"
    if not found.is_settled:
        return f"{timed} ({told}): too few pairs to see a difference."
    fall = _fall(before, after, phase)
    although = "" if fall is None else f" although {phase.name} MACs fell {share_text(fall)}"
    if not found.differs:
        return f"{start}: no difference seen ({told}){although}."
    rates = f"{two} tokens/s instead of {one} ({told}, on this machine)"
    if found.high < 1:
        return f"{start} is slower{although}: {rates}."
    bound = _beyond(before, after, phase, found)
    if bound is not None:
        return (
            f"{timed} ({told}); fewer MACs and bytes explain a factor of {number_text(bound)} at "
            "most, so other causes took part."
        )
    return f"{start} is faster: {rates}."
