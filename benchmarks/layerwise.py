"""Walking block by block beside hooks on the whole model, for the same statistics.

Each way runs in a new process and collects what MoDeGPT needs: second moments of every attention's
input and of every MLP's inner activations, in float64. "Extra" is the peak of resident memory above
what the loaded model takes before it starts.

    python benchmarks/layerwise.py --windows 64 --length 256 --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import modwright
from modwright.calibration import SecondMoments, TokenWindows, calibrate, token_windows


@torch.no_grad()
def by_hooks(anatomy: modwright.Anatomy, windows: TokenWindows) -> None:
    """Every block's sums at once, as the model runs from end to end."""
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            total = sums.setdefault(name, torch.zeros(2 * x.shape[1:], dtype=torch.float64))
            total += x.T @ x

        return hook

    handles = []
    for block in anatomy.blocks:
        assert block.attention is not None and block.mlp is not None
        reads = {
            f"{block.index}.attention": block.attention.q.module,
            f"{block.index}.mlp": block.mlp.down.module,
        }
        for name, module in reads.items():
            handles.append(module.register_forward_pre_hook(watch(name)))
    for batch in windows:
        anatomy.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
    for handle in handles:
        handle.remove()


def by_walking(anatomy: modwright.Anatomy, windows: TokenWindows) -> None:
    calibrate(anatomy, windows, [SecondMoments()])


WAYS = {"hooks": by_hooks, "walk": by_walking}


def resident(field: str) -> int:
    """Kilobytes of this process: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} here")


def measure(way: str, given: argparse.Namespace) -> None:
    """In a process of its own: prints seconds and extra megabytes."""
    torch.set_num_threads(given.threads)
    opened = modwright.open(given.model)
    windows = token_windows(
        opened.tokenizer, given.data, windows=given.windows, length=given.length, batch_size=8
    )
    anatomy = opened.anatomy
    with torch.no_grad():  # what torch sets up once belongs to neither way
        anatomy.model(torch.arange(8)[None])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    base, begin = resident("VmRSS"), time.perf_counter()
    WAYS[way](anatomy, windows)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "extra": (resident("VmHWM") - base) / 1000}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="lee-background")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return measure(given.way, given)
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):  # in turns, so that drift of the machine hits both
        for way, runs in seen.items():
            command = [sys.executable, *sys.argv, "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{given.model}, {given.windows} x {given.length} tokens, {given.threads} threads, ", end=""
    )
    print(f"medians of {given.repeats}")
    middle = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "extra")}
        for way, runs in seen.items()
    }
    for way, figures in middle.items():
        ratio = {key: figures[key] / middle["hooks"][key] for key in figures}
        print(
            f"{way:6} {figures['seconds']:6.1f} s ({ratio['seconds']:.2f} x)   extra peak "
            f"{figures['extra']:7,.0f} MB ({ratio['extra']:.2f} x)"
        )
    return None


if __name__ == "__main__":
    main()
