"""What finer tokens cost: TNT beside a plain Transformer, T2T's stems beside each other.

Times are of one forward pass; the two of a row run in turns in one process, and a ratio is the
median over neighboring runs. The peak is that of the bytes that tensors hold at once during a
pass, weights and image aside.

    python benchmarks/stem_speed.py --repeats 9 --threads 1
    python benchmarks/stem_speed.py --repeats 9 --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from modwright.core.paired import PairedRatio
from modwright.models import create_model

Run = Callable[[], Any]


def build(name: str) -> nn.Module:
    return create_model(name).eval()


def on(module: nn.Module, image: Tensor, explicit: bool = False) -> Run:
    """One forward pass; ``explicit`` writes the matrix of attention down."""

    @torch.no_grad()
    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext():
            module(image)

    return run


def seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(one: Run, other: Run, repeats: int) -> tuple[float, float, PairedRatio]:
    """Medians of both, and of the ratios of neighboring runs."""
    one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    first, second = (median(times) for times in zip(*pairs))
    return first, second, PairedRatio.of([b / a for a, b in pairs])


def peak(run: Run) -> float:
    """Most bytes that stand at once in a pass beyond those that stood before, in MiB."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(accumulate(changes)) / 2**20


def inner_streams(repeats: int) -> Iterator[str]:
    yield "| batch | plain (DeiT-S), ms | nested | nested, ms | times as long |"
    yield "|---|---|---|---|---|"
    plain = build("deit_small_patch16_224")
    for batch in (1, 2):
        image = torch.randn(batch, 3, 224, 224)
        for name in ("tnt_s_patch16_224", "tnt_s_1_patch16_224", "tnt_s_4_patch16_224"):
            found = in_turns(on(plain, image), on(build(name), image), repeats)
            one, other, ratio = found
            yield f"| {batch} | {one * 1e3:.0f} | `{name}` | {other * 1e3:.0f} | {ratio:.2f} |"


def stems(repeats: int) -> Iterator[str]:
    yield (
        "| batch | performer, ms | peak, MiB | other stem | its ms | its peak, MiB "
        "| times as long | times the peak |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    performer = build("t2t_vit_14").stem
    others = {
        "transformer": (build("t2t_vit_t_14").stem, False),
        "transformer, matrix written down": (build("t2t_vit_t_14").stem, True),
        "convolution": (build("t2t_vit_c_14").stem, False),
        "hard patches": (build("t2t_vit_patch16_14").stem, False),
    }
    for batch in (1, 4):
        image = torch.randn(batch, 3, 224, 224)
        ours = on(performer, image)
        ours_peak = peak(ours)
        for name, (stem, explicit) in others.items():
            run = on(stem, image, explicit)
            one, other, ratio = in_turns(ours, run, repeats)
            other_peak = peak(run)
            yield (
                f"| {batch} | {one * 1e3:.1f} | {ours_peak:.1f} | {name} | {other * 1e3:.1f} | "
                f"{other_peak:.1f} | {ratio:.2f} | {other_peak / ours_peak:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for line in (*inner_streams(options.repeats), "", *stems(options.repeats)):
        print(line)
    print(
        f"\nfloat32, 224 pixels, {options.threads} threads, {options.repeats} repeats, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
