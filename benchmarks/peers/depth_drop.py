"""Dropping blocks: modwright beside mergekit's passthrough merge, each in its own environment.

Both read the same checkpoint directory, leave out the same blocks and write a new directory. The
tensors of the two results are compared bit by bit; time and peak memory are those of the whole
process, interpreter start included.

    python benchmarks/peers/depth_drop.py --mergekit .venv-mergekit/bin/mergekit-yaml --threads 2

modwright verifies what it writes and reopens it in a process of its own; mergekit does neither. So
the time is told twice: as users run it, and by the Python call that only plans, applies and writes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

import modwright

BARE = """
import sys, modwright
from modwright.edits import apply, Plan
from modwright.surgery import make_method, plan
model = modwright.open(sys.argv[1]).model
decided = plan(model, make_method("drop", {"parts": sys.argv[3]}))
apply(model, decided, check=False).model.save_pretrained(sys.argv[2])
"""


LAUNCHER = """
import os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - begin, usage.ru_maxrss / 1000)
"""
"""A small process starts the measured one: a large one would lend it its own peak memory."""


def timed(command: list[str], threads: int) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process, without its own children."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    status, seconds, memory = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return float(seconds), float(memory)


def kept_ranges(blocks: int, start: int, stop: int) -> list[list[int]]:
    return [[a, b] for a, b in ((0, start), (stop, blocks)) if b > a]


def mergekit_config(model: Path, ranges: list[list[int]]) -> dict[str, object]:
    slices = [{"sources": [{"model": str(model), "layer_range": pair}]} for pair in ranges]
    return {"slices": slices, "merge_method": "passthrough", "dtype": "float32"}


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--mergekit", type=Path, required=True, help="its mergekit-yaml program")
    parser.add_argument("--start", type=int, default=12, help="first block that goes")
    parser.add_argument("--stop", type=int, default=16, help="first block after those that go")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        opened = modwright.open(given.model)
        opened.model.save_pretrained(work / "model")
        opened.tokenizer.save_pretrained(work / "model")
        blocks = opened.model.config.num_hidden_layers
        size = sum(t.numel() * t.element_size() for t in tensors(work / "model").values()) / 1e6
        del opened
        recipe = work / "merge.yaml"
        ranges = kept_ranges(blocks, given.start, given.stop)
        recipe.write_text(yaml.safe_dump(mergekit_config(work / "model", ranges)))
        parts = f"block[{given.start}:{given.stop}]"
        out = {name: work / name for name in ("mergekit", "modwright", "modwright, bare")}
        commands = {
            "mergekit": [str(given.mergekit), str(recipe), str(out["mergekit"])],
            "modwright": [
                *(sys.executable, "-m", "modwright", "edit", str(work / "model")),
                *("-o", str(out["modwright"]), "--drop", parts, "--no-eval", "--force"),
            ],
            "modwright, bare": [
                *(sys.executable, "-c", BARE),
                *(str(work / "model"), str(out["modwright, bare"]), parts),
            ],
        }
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(given.repeats):  # in turns, so that drift of the machine hits all
            for name, command in commands.items():
                seen[name].append(timed(command, given.threads))
        theirs, ours = tensors(out["mergekit"]), tensors(out["modwright"])
        theirs.pop("lm_head.weight", None)  # a tied head is stored once or twice
        ours.pop("lm_head.weight", None)
        equal = theirs.keys() == ours.keys() and all(
            torch.equal(theirs[name], ours[name]) for name in ours
        )
    print(f"{given.model}, {size:,.0f} MB; blocks {given.start} to {given.stop - 1} of {blocks} go")
    print(f"results {'equal, bit by bit' if equal else 'DIFFER'}: {len(ours)} tensors")
    base = [statistics.median(column) for column in zip(*seen["mergekit"])]
    for name, runs in seen.items():
        seconds, memory = (statistics.median(column) for column in zip(*runs))
        print(
            f"{name:16} {seconds:6.1f} s ({seconds / base[0]:.2f} x)   peak {memory:7,.0f} MB "
            f"({memory / base[1]:.2f} x)   median of {given.repeats}, {given.threads} threads"
        )


if __name__ == "__main__":
    main()
