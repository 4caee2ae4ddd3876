"""How fast a model runs here, by the clock: prefill and decoding apart."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import cache_keyword
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.paired import PairedRatio
from modwright.core.progress import SILENT, Progress
from modwright.cost.macs import at_least
from modwright.cost.render import CostTable, Shown

__all__ = ["Comparison", "Speed", "TimingStats", "compare_speed", "measure_speed"]

# More pairs of runs are timed until the intervals of their ratios are as narrow as this share.
_WIDTH = 0.05
_MOST_PAIRS = 60


@dataclass(frozen=True)
class TimingStats:
    """Seconds of one phase over the repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> TimingStats:
        return cls(statistics.median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True, repr=False)
class Speed(Shown):
    """Measured speed, with all that is needed to measure it again.

    Attributes:
        prefill_tokens_per_second: prompt tokens of the whole batch over the median time.
        decode_tokens_per_second: new tokens of the whole batch over the median time; None for
            encoders.
        prefill_seconds, decode_seconds: of one repeat, all its tokens.
        method: how it was measured, in a sentence.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    prefill_seconds: TimingStats
    decode_seconds: TimingStats | None
    batch: int
    prompt: int
    new_tokens: int
    repeats: int
    threads: int
    dtype: str
    device: str
    method: str

    def phases(self) -> list[tuple[str, float, TimingStats]]:
        """(name, tokens per second, seconds) of what was measured."""
        found = [("prefill", self.prefill_tokens_per_second, self.prefill_seconds)]
        if self.decode_tokens_per_second is not None and self.decode_seconds is not None:
            found.append(("decode", self.decode_tokens_per_second, self.decode_seconds))
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {rate:,.1f} tokens/s" for name, rate, _ in self.phases())
        return f"Speed({told}; {self.device}, {self.dtype}, {self.threads} threads)"

    def table(self) -> CostTable:
        """One line per phase, and how it was measured."""
        rows = [
            [
                name,
                f"{rate:,.1f}",
                *(f"{s:.4f}" for s in (spread.median, spread.least, spread.most)),
            ]
            for name, rate, spread in self.phases()
        ]
        return CostTable(self.method, ["", "tokens/s", "median s", "least s", "most s"], rows)


class Comparison(NamedTuple):
    """Two speeds, and how many times as fast the second is, by phase ("prefill", "decode")."""

    first: Speed
    second: Speed
    ratios: Mapping[str, PairedRatio]


def measure_speed(
    model: Any,
    *,
    batch: int = 1,
    prompt: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    warmup: int = 1,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Speed:
    """Times prefill and decoding of a model as it stands, on the device it is on.

    Args:
        batch: sequences side by side.
        prompt: random tokens that the prefill reads, of each sequence; an image has its own.
        new_tokens: tokens that are fed one by one afterwards; not used for encoders.
        repeats: timed runs, of which the median counts.
        warmup: runs before them that do not count.
        threads: of torch on the CPU while measuring, restored afterwards; None for those set now.
        seed: of the random tokens.

    Raises:
        InvalidInputError: a number out of range, more tokens than the model has positions, or a
            model without weights.
    """
    runs = [_Run(model, batch, prompt, new_tokens, seed)]
    return _measure(runs, repeats, warmup, threads, 0, progress)[0]


def compare_speed(
    a: Any,
    b: Any,
    *,
    batch: int = 1,
    prompt: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    warmup: int = 1,
    threads: int | None = None,
    seed: int = 0,
    max_seconds: float = 20.0,
    progress: Progress = SILENT,
) -> Comparison:
    """Times two models alternately (A B, B A, A B) in one process, so that ratios survive drift.

    Arguments and refusals are those of :func:`measure_speed`, but for ``repeats``: so many pairs of
    runs are timed at least, and more until every ratio's interval is narrower than 5 % or the timed
    runs have taken ``max_seconds``. Where ``ratios["decode"].median`` is 1.5, ``b`` decodes one and
    a half times as fast as ``a``; where ``ratios["decode"].differs`` is False, nothing was seen.
    """
    runs = [_Run(model, batch, prompt, new_tokens, seed) for model in (a, b)]
    first, second = _measure(runs, repeats, warmup, threads, max_seconds, progress)
    return Comparison(first, second, _ratios(runs))


def _ratios(runs: Sequence[_Run]) -> dict[str, PairedRatio]:
    one, two = runs
    pairs = {"prefill": (one.prefill, two.prefill), "decode": (one.decode, two.decode)}
    return {
        phase: PairedRatio.of([first / second for first, second in zip(*times, strict=True)])
        for phase, times in pairs.items()
        if all(times)
    }


class _Run:
    """One model with its tokens, and the seconds of its timed runs."""

    def __init__(self, model: Any, batch: int, prompt: int, new_tokens: int, seed: int) -> None:
        at_least(1, batch=batch, prompt=prompt, new_tokens=new_tokens)
        anatomy = Anatomy.of(model)
        reads = anatomy.family.inputs()
        self.noun = reads.noun
        self.batch, self.prompt = batch, reads.positions(prompt)
        self.new_tokens = new_tokens if anatomy.family.is_causal() else 0
        self.model = anatomy.model
        self.inputs = _random_inputs(anatomy, batch, self.prompt + self.new_tokens, seed)
        self.device = next(self.model.parameters()).device
        # generate() asks for the logits of the last position only, and so does the measurement.
        takes = inspect.signature(self.model.forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.prefill: list[float] = []
        self.decode: list[float] = []

    def once(self, timed: bool) -> None:
        """One prefill, and the tokens after it one by one."""
        options: dict[str, Any] = dict(self.options)
        if self.new_tokens:
            from transformers import DynamicCache

            options["use_cache"] = True
            options[cache_keyword(self.model)] = DynamicCache(config=self.model.config)
        start = self._now()
        self._read(0, self.prompt, options)
        middle = self._now()
        for position in range(self.prompt, self.prompt + self.new_tokens):
            self._read(position, position + 1, options)
        if timed:
            self.prefill.append(middle - start)
            if self.new_tokens:
                self.decode.append(self._now() - middle)

    def _read(self, start: int, stop: int, options: Mapping[str, Any]) -> None:
        read = self.inputs
        if self.new_tokens:
            read = {name: tensor[:, start:stop] for name, tensor in read.items()}
        self.model(**read, **options)

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def speed(self, threads: int, warmup: int) -> Speed:
        prefill, repeats = TimingStats.of(self.prefill), len(self.prefill)
        decode = TimingStats.of(self.decode) if self.decode else None
        method = f"batch {self.batch}, {self.prompt} random {self.noun} read at once"
        if self.options:
            method += ", logits of the last one only"
        if self.new_tokens:
            method += f"; then {self.new_tokens} tokens fed one by one with the key/value cache"
        return Speed(
            prefill_tokens_per_second=self.batch * self.prompt / prefill.median,
            decode_tokens_per_second=(
                None if decode is None else self.batch * self.new_tokens / decode.median
            ),
            prefill_seconds=prefill,
            decode_seconds=decode,
            batch=self.batch,
            prompt=self.prompt,
            new_tokens=self.new_tokens,
            repeats=repeats,
            threads=threads,
            dtype=str(next(self.model.parameters()).dtype).removeprefix("torch."),
            device=str(self.device),
            method=f"{method}; median of {repeats} repeats after {warmup} to warm up",
        )


def _random_inputs(anatomy: Anatomy, batch: int, length: int, seed: int) -> dict[str, Tensor]:
    """What the model reads, on its device.

    Raises:
        InvalidInputError: it has no weights, or fewer positions.
    """
    if any(parameter.is_meta for parameter in anatomy.model.parameters()):
        raise InvalidInputError(
            "the model has no weights (meta device); open it with weights to measure it"
        )
    limit = getattr(anatomy.config, "max_position_embeddings", None)
    if "positions" in anatomy.outer and limit is not None and length > limit:
        raise InvalidInputError(
            f"prompt and new_tokens need {length} positions; the model has 1 to {limit}, so take "
            "fewer tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    found = anatomy.family.inputs().random(batch, length, generator)
    # Padding would be taken for a mistake: nothing here is masked.
    pad, ids = getattr(anatomy.config, "pad_token_id", None), found.get("input_ids")
    if pad is not None and ids is not None:
        found["input_ids"] = ids.where(ids != pad, (pad + 1) % anatomy.config.vocab_size)
    near = next(anatomy.model.parameters())
    return {
        name: t.to(near.device, near.dtype if t.is_floating_point() else t.dtype)
        for name, t in found.items()
    }


def _measure(
    runs: Sequence[_Run],
    repeats: int,
    warmup: int,
    threads: int | None,
    max_seconds: float,
    progress: Progress,
) -> list[Speed]:
    at_least(1, repeats=repeats, threads=1 if threads is None else threads)
    at_least(0, warmup=warmup)

    def turn(number: int, timed: bool = True) -> None:
        """One run of each; which is first alternates."""
        for run in reversed(runs) if number % 2 else runs:
            run.once(timed)

    def is_narrow() -> bool:
        return all(ratio.is_narrow(_WIDTH) for ratio in _ratios(runs).values())

    start, before = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with eval_mode(*(run.model for run in runs)), torch.no_grad():
            with progress.phase("speed", (warmup + repeats) * len(runs)) as task:
                for number in range(warmup + repeats):
                    turn(number, timed=number >= warmup)
                    task.advance(len(runs))
            left = _MOST_PAIRS - repeats if len(runs) == 2 else 0
            if left > 0 and max_seconds > 0 and not is_narrow():
                with progress.phase("speed: more pairs", left) as task:
                    while left and not is_narrow() and time.monotonic() - start < max_seconds:
                        turn(left)
                        task.advance()
                        left -= 1
                    task.advance(left)
            return [run.speed(torch.get_num_threads(), warmup) for run in runs]
    finally:
        torch.set_num_threads(before)
