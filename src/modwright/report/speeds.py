"""What was measured of speed, in words: how sure a difference is, and where none was seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modwright.core.formatting import MISSING, interval_text, number_text, share_text
from modwright.core.paired import PairedRatio
from modwright.report.data import Stage
from modwright.report.metrics import Metric, comparable, differing, ratio

__all__ = ["MACS_FALL", "PHASES", "Phase", "SpeedMetric", "paired_ratio"]
__all__ += ["speed_cells", "speed_sentences"]

MACS_FALL = 0.03
_SAME = PairedRatio(1.0, 1.0, 1.0, 0)


@dataclass(frozen=True)
class Phase:
    """A phase of a model's work: its name, the key of its rate, and what its time depends on."""

    name: str
    rate: str
    doing: str
    work: tuple[str, ...]


PHASES = (
    Phase(
        "decode",
        "decode_tokens_per_second",
        "decoding",
        ("decode_macs", "stored_bytes", "kv_bytes"),
    ),
    Phase(
        "prefill",
        "prefill_tokens_per_second",
        "prefill",
        ("prefill_macs", "stored_bytes", "activation_bytes"),
    ),
)


def paired_ratio(before: Stage, after: Stage, phase: str) -> PairedRatio | None:
    """How many times as fast the second stage is; None where pairs of runs were not timed.

    Two stages after steps were both timed against the model as it came: their intervals are divided
    one by the other, which makes the result wider than it has to be, and never too narrow.
    """
    if not comparable(before, after, "speed"):
        return None
    one, two = _against_first(before, phase), _against_first(after, phase)
    if one is None or two is None:
        return None
    pairs = min((r.pairs for r in (one, two) if r is not _SAME), default=0)
    return PairedRatio(two.median / one.median, two.low / one.high, two.high / one.low, pairs)


def _against_first(stage: Stage, phase: str) -> PairedRatio | None:
    speed = stage.speed or {}
    if stage.method is None or speed.get("unchanged"):
        return _SAME
    told: dict[str, Any] | None = (speed.get("ratios") or {}).get(phase)
    return None if told is None else PairedRatio(**told)


def _bound(before: Stage, after: Stage, phase: Phase) -> float | None:
    """How many times as fast a phase can become when only the counted work takes time."""
    falls = [
        1 / change
        for key in phase.work
        if (change := ratio(before.cost.get(key), after.cost.get(key)))
    ]
    return max(falls) if falls and comparable(before, after, "cost") else None


def _beyond(before: Stage, after: Stage, phase: Phase, found: PairedRatio) -> float | None:
    """The bound, where even the low end of the interval is above it."""
    bound = _bound(before, after, phase)
    return bound if bound is not None and found.low > max(bound, 1.0) else None


class SpeedMetric(Metric):
    """A column of tokens per second: it names a change only where a difference was seen."""

    def shift(self, before: Stage, stage: Stage) -> float | None:
        phase = next(phase for phase in PHASES if phase.rate == self.name)
        found = paired_ratio(before, stage, phase.name)
        if found is None or not found.differs or _beyond(before, stage, phase, found):
            return None
        return found.median

    def has_headline(self, before: Stage, stage: Stage) -> bool:
        """Also where nothing was compared: then the number, or that it was not measured."""
        return (
            before is stage
            or MISSING in (self.cell(before), self.cell(stage))
            or bool(self.summary_sentence(before, stage))
        )


def speed_sentences(
    before: Stage, after: Stage, name: str = "", missed: bool = False
) -> Iterator[str]:
    """One sentence per phase: faster, slower, or no difference seen, with the interval.

    Args:
        before: the stage to compare with.
        after: the stage that the sentences are about.
        name: what they call it; empty for the result as a whole.
        missed: say only where a phase needs fewer MACs and is not faster.
    """
    if after.speed is None or before.speed is None:
        if not missed:
            yield "Speed was not timed before and after; fewer MACs alone do not mean less time."
        return
    odd = differing(before, after, "speed")
    if odd:
        if not missed:
            yield (
                "Speeds before and after cannot be compared: they were timed differently "
                f"({', '.join(odd)})."
            )
        return
    if before.method is None and after.speed.get("unchanged"):
        if not missed:
            yield (
                "Speed: structure and weights are those of the model as it came, so nothing was "
                "timed again."
            )
        return
    for phase in PHASES:
        if before.speed.get(phase.rate) is None or after.speed.get(phase.rate) is None:
            continue
        found = paired_ratio(before, after, phase.name)
        if not missed or _is_missed(before, after, phase, found):
            yield _sentence(before, after, name, phase, found)


def speed_cells(first: Stage, stage: Stage) -> tuple[str, str]:
    """Prefill and decoding of a stage for a narrow table.

    Tokens per second, or beside the first stage the interval of the ratio: ``× 0.93–1.08``.
    """
    cells = {phase.name: _cell(first, stage, phase) for phase in PHASES}
    return cells["prefill"], cells["decode"]


def _cell(first: Stage, stage: Stage, phase: Phase) -> str:
    rate = (stage.speed or {}).get(phase.rate)
    if rate is None:
        return MISSING
    found = None if first is stage else paired_ratio(first, stage, phase.name)
    if found is None:
        return number_text(rate)
    return f"× {interval_text(found.low, found.high)}" if found.pairs else "unchanged"


def _fall(before: Stage, after: Stage, phase: Phase) -> float | None:
    """The share by which the MACs of a phase fell, where that is more than a little."""
    macs = ratio(before.cost.get(phase.work[0]), after.cost.get(phase.work[0]))
    known = macs is not None and comparable(before, after, "cost")
    return 1 - macs if known and macs is not None and macs < 1 - MACS_FALL else None


def _is_missed(before: Stage, after: Stage, phase: Phase, found: PairedRatio | None) -> bool:
    if found is None or not found.is_settled or _fall(before, after, phase) is None:
        return False
    return found.low <= 1


def _sentence(
    before: Stage, after: Stage, name: str, phase: Phase, found: PairedRatio | None
) -> str:
    one, two = ((stage.speed or {})[phase.rate] for stage in (before, after))
    rates = f"{number_text(two)} tokens/s instead of {number_text(one)}"
    start = f"{name}: {phase.doing}" if name else phase.doing.capitalize()
    if found is None:
        return (
            f"{start} was timed at {rates}; how far such times spread was not recorded, so "
            "nothing follows from them."
        )
    told = f"{interval_text(found.low, found.high)} times as fast, {found.pairs} pairs of runs"
    if not found.is_settled:
        return f"{start} was timed at {rates} ({told}): too few pairs to see a difference."
    fall = _fall(before, after, phase)
    although = "" if fall is None else f" although {phase.name} MACs fell {share_text(fall)}"
    if not found.differs:
        return f"{start}: no difference seen ({told}){although}."
    if found.high < 1:
        return f"{start} is slower{although}: {rates} ({told}, on this machine)."
    bound = _beyond(before, after, phase, found)
    if bound is not None:
        return (
            f"{start} was timed at {rates} ({told}); fewer MACs and bytes explain a factor of "
            f"{number_text(max(bound, 1.0))} at most, so other causes took part."
        )
    return f"{start} is faster: {rates} ({told}, on this machine)."
