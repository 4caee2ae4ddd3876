"""The metric of how fast a model runs, measured beside the baseline in pairs of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from modwright.core.formatting import number_text, percent_text, share_text
from modwright.core.paired import CONFIDENCE, FEWEST_PAIRS
from modwright.core.progress import SILENT, Progress
from modwright.cost import (
    compare_speed,
    kv_cache_bytes,
    measure_speed,
    state_bytes,
)
from modwright.edits.remodeled import edits_of
from modwright.metrics.column import StageLike
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.speed_words import (
    MACS_FALL,
    SpeedColumn,
    missed_sentences,
    speed_sentences,
)
from modwright.metrics.windows import AtLeastOne, forward_bytes

__all__ = ["SpeedMetric", "StoredSpeed", "is_same_model"]

_TIMED = (
    "tokens per second of the baseline, by the median of several runs of random tokens; "
    "an edited model's are these times the median ratio of pairs of neighboring runs of both, so "
    "that they can be compared although the machine's speed drifts; the interval of a ratio "
    "encloses its median with 95 % confidence"
)
_SEEN = "on the machine named below. A change is given only where a difference was seen."
_RATES = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}


@dataclass(frozen=True)
class StoredSpeed:
    """What a report stores of the speed of a model.

    Attributes:
        prefill_tokens_per_second, decode_tokens_per_second: None where they were not measured.
        recipe: how they were timed.
        unchanged: True for a model that is the baseline, which is not timed again.
        ratios: for each phase how many times as fast it is as the baseline, with an interval.
    """

    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    recipe: dict[str, Any]
    unchanged: bool | None = None
    ratios: dict[str, dict[str, float]] | None = None


def _column(phase: str, label: str, meaning: str, headline: Any) -> SpeedColumn:
    return SpeedColumn(
        "speed",
        _RATES[phase],
        label,
        number_text,
        percent_text,
        "slower",
        "faster",
        False,
        f"{meaning} {_SEEN}",
        headline=headline,
    )


@metric(
    "speed",
    unit="tokens/s",
    direction="higher",
    title="Speed (timed)",
    must_be_finite=(),
    by_default=True,
    is_quality=False,
    old_field="speed",
    order=90,
    columns=(
        _column("prefill", "Prefill tokens/s", "Measured tokens of the prompt read per second", ""),
        _column("decode", "Decode tokens/s", "Measured tokens written per second", "always"),
    ),
    rules=(
        (
            "no difference seen",
            f"both models ran alternately, and the {100 * CONFIDENCE:.0f} % interval of the ratios "
            f"of neighboring runs covers 1; at least {FEWEST_PAIRS} pairs, else too few",
        ),
        ("is faster, is slower", "that whole interval lies above 1, below 1"),
        ("although MACs fell", f"counted MACs fell by more than {share_text(MACS_FALL)}"),
    ),
)
@dataclass(frozen=True)
class SpeedMetric(Metric):
    """Timing of prefill and decoding, beside the baseline.

    Attributes:
        batch: sequences side by side.
        prompt: tokens that the prefill reads.
        new_tokens: tokens that are decoded.
        repeats: timed runs, or pairs of runs, at least.
        max_seconds: more pairs are timed so long, until the intervals of their ratios are narrow.
    """

    batch: AtLeastOne = 1
    prompt: AtLeastOne = 128
    new_tokens: AtLeastOne = 32
    repeats: AtLeastOne = 3
    max_seconds: Annotated[float, Field(ge=0)] = 20

    def measure(self, subject: Subject, progress: Progress = SILENT) -> StoredSpeed:
        conditions = asdict(self)
        recipe = {"method": _TIMED, "threads": torch.get_num_threads(), **conditions}
        reference, model = subject.reference, subject.model
        known = None if reference is None else reference.found.get(self.name)
        if reference is None or known is None:
            del conditions["max_seconds"]
            timing = measure_speed(model, **conditions, progress=progress)
            found = {name: getattr(timing, name) for name in _RATES.values()}
            return StoredSpeed(**found, recipe=recipe)
        if is_same_model(reference.model, model):
            rates = {name: known.get(name) for name in _RATES.values()}
            return StoredSpeed(**rates, recipe=recipe, unchanged=True)
        ratios = compare_speed(reference.model, model, **conditions, progress=progress).ratios
        rates = dict.fromkeys(_RATES.values())
        for phase, ratio in ratios.items():
            if (before := known.get(_RATES[phase])) is not None:
                rates[_RATES[phase]] = before * ratio.median
        info = {phase: asdict(ratio) for phase, ratio in ratios.items()}
        return StoredSpeed(**rates, recipe=recipe, ratios=info)

    def memory_estimate(self, anatomy: Any) -> int:
        cache = kv_cache_bytes(anatomy, self.prompt + self.new_tokens, self.batch)
        cache += self.batch * state_bytes(anatomy)
        return int(forward_bytes(anatomy, self.prompt, self.batch, logits=False) + cache)

    @classmethod
    def sentences(cls, before: StageLike, after: StageLike) -> Iterator[str]:
        return speed_sentences(before, after)

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        return missed_sentences(before, after, name)

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        for phase, key in _RATES.items():
            if values.get(key) is not None:
                yield f"{phase} {number_text(values[key])} tokens/s"


def is_same_model(one: Any, other: Any) -> bool:
    """Whether two models have one structure and equal tensors, so that one needs no timing."""
    first, second = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and edits_of(one.config) == edits_of(other.config)
        and first.keys() == second.keys()
        and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    )
