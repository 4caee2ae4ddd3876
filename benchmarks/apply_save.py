"""What it costs to apply a plan and save, beside reading and writing as many bytes.

The yardstick reads the source's safetensors file and writes its tensors to a new one. modwright
opens the same file, applies a plan that drops four attentions, and saves: bare, and with the checks
that it makes by default (decoding, causality, files, a new process that must give equal outputs).

    python benchmarks/apply_save.py --repeats 5 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import modwright
from modwright.edits import apply
from modwright.edits.verify import check_reopens
from modwright.surgery import make_method, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--drop", default="attention[5, 12, 20, 25]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        modwright.save(modwright.open(given.model).model, work / "model")
        weights = work / "model" / "model.safetensors"
        method = make_method("drop", {"parts": given.drop})

        def copied() -> None:
            save_file({n: t.clone() for n, t in load_file(weights).items()}, work / "copy")

        def edited(check: bool) -> None:
            opened = modwright.open(str(work / "model"))
            result = apply(opened.model, plan(opened.model, method), check=check).model
            reopen = (lambda folder: check_reopens(result, folder)) if check else None
            modwright.save(result, work / "out", source=opened.source, force=True, check=reopen)

        ways: dict[str, Callable[[], None]] = {
            "read and write its bytes": copied,
            "open, apply, save": lambda: edited(False),
            "the same, with all checks": lambda: edited(True),
        }
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(given.repeats + 1):  # in turns; the first round warms up
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                if repeat:
                    seen[name].append(time.perf_counter() - begin)
        size = weights.stat().st_size / 1e6
    print(f"{given.model}, {size:,.0f} MB, drop {given.drop}; ", end="")
    print(f"medians of {given.repeats}, {given.threads} threads")
    base = statistics.median(seen["read and write its bytes"])
    for name, seconds in seen.items():
        middle = statistics.median(seconds)
        print(f"{name:28} {middle:6.2f} s ({middle / base:.2f} x)")


if __name__ == "__main__":
    main()
