"""What more scales cost a DuoFormer, and what it is worth to fold cells into the batch.

All run in turns in one process; numbers are medians, and a ratio is the median over neighboring
runs. Memory is how far one pass raises the most that the process holds, read from Linux.

    python benchmarks/duoformer_speed.py --repeats 5 --threads 1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from modwright.core.paired import PairedRatio
from modwright.models import create_model

SCALES = (2, 3, 4)


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(runs: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Seconds of each, after one call to warm up."""
    for run in runs:
        run()
    rounds = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [list(of) for of in zip(*rounds)]


def held(field: str) -> int:
    """Kilobytes of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(run: Callable[[], Any]) -> float:
    """Megabytes that a call needs above what is held before it; NaN where there is no Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    run()
    return (held("VmHWM") - before) / 1000


def loop_over_cells(model: Any, tokens: Tensor) -> Tensor:
    """:meth:`mix_scales`, one cell of one image after the other."""
    row = (1, model.tokenise.tokens)
    table = model.scale_positions.table
    found = [
        model.scale_blocks(cell[None] + table, row)[0, 0] for image in tokens for cell in image
    ]
    return torch.stack(found).unflatten(0, tokens.shape[:2])


@torch.no_grad()
def scales_side_by_side(depth: int, batch: int, repeats: int) -> None:
    """Prints a table: tokens per cell, milliseconds per image, peak memory."""
    fields = {"depths": depth, "num_classes": 2}
    models = {s: create_model(f"duoformer_resnet18_scales{s}_224", **fields).eval() for s in SCALES}
    images = torch.randn(batch, 3, 224, 224)
    runs = [partial(model, images) for model in models.values()]
    taken = in_turns(runs, repeats)
    few_at_once = models[SCALES[-1]]
    print("| scales | tokens per cell | ms per image | times as long | peak, MB |")
    print("|---|---|---|---|---|")
    for scales, run, own in zip(SCALES, runs, taken):
        longer = PairedRatio.of([mine / base for mine, base in zip(own, taken[0])])
        each, tokens = 1e3 * median(own) / batch, models[scales].tokenise.tokens + 1
        print(f"| {scales} | {tokens} | {each:.0f} | {longer:.1f} | {peak(run):.0f} |")
    few_at_once.config.cells_at_once = 7
    print(f"\nscales 4 with cells_at_once=7: {peak(runs[-1]):.0f} MB")


@torch.no_grad()
def folded_and_looped(depth: int, batch: int, repeats: int) -> None:
    """Prints how much faster all cells at once are, and that it is the same."""
    print("\n| scales, dim | loop over cells, ms | folded, ms | times as fast | apart by |")
    print("|---|---|---|---|---|")
    for scales, dim, heads in ((2, 768, 12), (3, 768, 12), (2, 48, 3), (3, 48, 3)):
        name = f"duoformer_resnet18_scales{scales}_224"
        model = create_model(name, depths=depth, hidden_size=dim, num_heads=heads).eval()
        tokens = torch.randn(batch, 49, model.tokenise.tokens + 1, dim)
        runs = [partial(loop_over_cells, model, tokens), partial(model.mix_scales, tokens)]
        off = float((runs[0]() - runs[1]()).abs().max())
        loop, folded = in_turns(runs, repeats)
        ratio = PairedRatio.of([slow / fast for slow, fast in zip(loop, folded)])
        slow, fast = 1e3 * median(loop), 1e3 * median(folded)
        print(f"| {scales}, {dim} | {slow:.0f} | {fast:.0f} | {ratio:.1f} | {off:.0e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--depth", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scales_side_by_side(options.depth, options.batch, options.repeats)
    folded_and_looped(2, options.batch, options.repeats)
    print(
        f"\nfloat32, batch {options.batch}, depth {options.depth} (2 in the second table), "
        f"{options.threads} threads, torch {torch.__version__}, {options.repeats} repeats"
    )


if __name__ == "__main__":
    main()
