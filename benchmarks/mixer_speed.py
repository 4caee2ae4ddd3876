"""Token mixers without an N x N product, or with smaller ones, against attention of the same width.

Modulation of SMT (arXiv 2307.08579) and attention in slices of SReT (arXiv 2111.05297), each beside
full attention in two forms: explicit, which keeps the scores of all pairs of tokens, and torch's
scaled_dot_product_attention, which does not. Both run in turns in one process, forward alone; a
ratio is the median over neighboring runs, above 1 where the mixer is faster.

    python benchmarks/mixer_speed.py --repeats 25 --threads 1
    python benchmarks/mixer_speed.py --repeats 25 --threads 2

Where other work goes on beside it, ``--clock processor`` leaves out the time in which it waits. It
adds up over threads, so it tells something with one thread alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from modwright.core.paired import PairedRatio
from modwright.nn.token_mixers.scale_aware_modulation import ScaleAwareModulation
from modwright.nn.token_mixers.self_attention import SelfAttention, naive_attention
from modwright.nn.token_mixers.sliced_attention import SlicedAttention

WIDTH, HEADS = 64, 2
Run = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class KeptScores:
    """Put before a kind of attention: the scores of all pairs of tokens are a tensor."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor, spatial_shape: Any = None) -> Tensor:
        return naive_attention(q, k, v, self.scale).transpose(1, 2).flatten(2)


class ExplicitAttention(KeptScores, SelfAttention):
    """Full attention, explicit."""


class ExplicitSlices(KeptScores, SlicedAttention):
    """Attention in slices, explicit."""


FULL = {"explicit": ExplicitAttention, "fused": SelfAttention}
SLICES = {"explicit": ExplicitSlices, "fused": SlicedAttention}


@dataclass(frozen=True)
class Accumulator:
    """Measures two runs in turns.

    Attributes:
        clock: gives seconds.
        repeats: of the pair.
    """

    clock: Callable[[], float]
    repeats: int

    @torch.no_grad()
    def seconds(self, run: Run) -> float:
        """One call."""
        began = self.clock()
        run()
        return self.clock() - began

    def side_by_side(self, first: Run, second: Run) -> tuple[float, float, PairedRatio]:
        """Medians of both in milliseconds, and of second / first over neighboring runs."""
        for run in (first, second):
            self.seconds(run)
        pairs = [(self.seconds(first), self.seconds(second)) for _ in range(self.repeats)]
        one, other = zip(*pairs)
        return median(one) * 1e3, median(other) * 1e3, PairedRatio.of([b / a for a, b in pairs])


def call(part: Any, batch: int, side: int, **more: Any) -> Run:
    """A part's run on random tokens of a square grid."""
    part.eval()
    x = torch.randn(batch, side * side, WIDTH)
    return lambda: part(x, (side, side), **more)


def row(
    side: int, batch: int, what: str, peer: str, times: tuple[float, float, PairedRatio]
) -> None:
    mine, theirs, ratio = times
    place = f"| {side} x {side} | {batch} | {what} | {mine:.2f}"
    print(f"{place} | {peer} | {theirs:.2f} | {ratio:.1f} |", flush=True)


def modulation(side: int, batch: int) -> Run:
    return call(ScaleAwareModulation(WIDTH, 4), batch, side)


def attention(kind: type[SelfAttention], batch: int, side: int) -> Run:
    return call(kind(WIDTH, HEADS), batch, side)


def compare_modulation(sides: tuple[int, int], batch: int, watch: Accumulator) -> None:
    for side in sides:
        for form, kind in FULL.items():
            times = watch.side_by_side(modulation(side, batch), attention(kind, batch, side))
            row(side, batch, "modulation, 4 kernels", f"attention, {form}", times)


def compare_slices(side: int, batch: int, watch: Accumulator) -> None:
    for form, kind in SLICES.items():
        whole = call(kind(WIDTH, HEADS, [1]), batch, side)
        first = call(kind(WIDTH, HEADS, [8, 2]), batch, side)
        later = call(kind(WIDTH, HEADS, [8, 2]), batch, side, loop=1)
        for what, run in (("8 slices", first), ("2 slices, shuffled", later)):
            row(side, batch, what, f"1 slice, {form}", watch.side_by_side(run, whole))


def growth(sides: tuple[int, int], batch: int, watch: Accumulator) -> None:
    """What four times as many tokens cost."""
    kinds: dict[str, Callable[[int], Run]] = {"modulation": lambda side: modulation(side, batch)}
    for form, kind in FULL.items():
        kinds[f"attention, {form}"] = partial(attention, kind, batch)
    print(f"\nFour times the tokens, {sides[0]} x {sides[0]} to {sides[1]} x {sides[1]}, take")
    for name, make in kinds.items():
        *_, ratio = watch.side_by_side(make(sides[0]), make(sides[1]))
        print(f"- {name}: {ratio:.1f} times as long", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sides, watch = (28, 56), Accumulator(CLOCKS[options.clock], options.repeats)
    print("| grid | batch | mixer | ms | against | ms | times as fast |")
    print("|---|---|---|---|---|---|---|")
    compare_modulation(sides, options.batch, watch)
    compare_slices(sides[0], options.batch, watch)
    growth(sides, options.batch, watch)
    print(
        f"\nwidth {WIDTH}, {HEADS} heads, float32, {options.threads} threads, "
        f"torch {torch.__version__}, {options.repeats} repeats, {options.clock} time"
    )


if __name__ == "__main__":
    main()
