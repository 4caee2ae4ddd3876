"""Scans of Mamba and Mamba-2 beside those of transformers and mambapy.

    python benchmarks/scan_speed.py --repeats 7 --threads 1
    python benchmarks/scan_speed.py --memory
    python benchmarks/scan_speed.py --scans Mamba --lengths 1024 --repeats 21 --out out/scan.jsonl

All run in turns in one process, on the same input. A ratio is the median over neighboring runs,
above 1 where the scan of modwright is faster. A peer whose run took longer than ``--patience``
seconds is not run at greater lengths: transformers' own loop has a backward that grows as the
square of the length. The second prints what a run holds beyond its input, each in a process of its
own. What a token costs behind a context: state_decode.py.

mambapy is a peer where it can be imported: ``pip install --no-deps -r requirements-bench.lock``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer, mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from turns import CLOCKS, Clock, in_turns

from modwright.core.paired import PairedRatio
from modwright.nn.selective_scan import selective_scan
from modwright.nn.ssd import ssd_scan
from modwright.nn.token_mixers.mamba1 import Mamba1

Scan = Callable[..., Any]
Inputs = dict[str, Tensor]
STATES, HEAD, CHUNK = 16, 64, 64
SCANS = ("Mamba", "Mamba-2", "mixer of Mamba")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
HAS_MAMBAPY = importlib.util.find_spec("mambapy") is not None


def inputs_of_mamba(batch: int, length: int, width: int) -> Inputs:
    """What a selective scan reads, tokens before channels."""
    return {
        "u": torch.randn(batch, length, width),
        "dt": F.softplus(torch.randn(batch, length, width) - 4),
        "A": -torch.arange(1.0, STATES + 1).expand(width, STATES).contiguous(),
        "B": torch.randn(batch, length, STATES),
        "C": torch.randn(batch, length, STATES),
    }


def inputs_of_mamba2(batch: int, length: int, width: int) -> Inputs:
    """What the scan of Mamba-2 reads: heads of 64 channels with 64 states, one group."""
    heads = width // HEAD
    return {
        "x": torch.randn(batch, length, heads, HEAD),
        "dt": F.softplus(torch.randn(batch, length, heads) - 4),
        "A": -torch.arange(1.0, heads + 1),
        "B": torch.randn(batch, length, 1, HEAD),
        "C": torch.randn(batch, length, 1, HEAD),
    }


def of_transformers(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, mambapy: bool = False
) -> Any:
    """The scan of transformers' Mamba, channels before tokens."""
    u, dt, B, C = (tensor.transpose(1, 2) for tensor in (u, dt, B, C))
    return mamba_selective_scan(u, dt, A, B, C, return_last_state=True, use_mambapy=mambapy)


def of_transformers_mamba2(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Any:
    """The scan of transformers' Mamba-2."""
    return mamba2_chunk_scan(x, dt, A, B, C, chunk_size=CHUNK, return_final_states=True)


def mixer_of_transformers(d_model: int, mambapy: bool) -> Scan:
    """The whole mixer of transformers, with the path that is asked for."""
    config = MambaConfig(hidden_size=d_model, num_hidden_layers=1, use_mambapy=mambapy)
    mixer = MambaMixer(config, 0)
    return lambda x: (mixer(x), None)


def peers() -> dict[str, Scan]:
    """Scans beside that of modwright."""
    found: dict[str, Scan] = {"transformers": of_transformers}
    if HAS_MAMBAPY:
        found["mambapy"] = partial(of_transformers, mambapy=True)
    return found


def mixers(d_model: int) -> dict[str, Scan]:
    """Whole mixers beside that of modwright."""
    found = {"transformers": mixer_of_transformers(d_model, mambapy=False)}
    if HAS_MAMBAPY:
        found["mambapy"] = mixer_of_transformers(d_model, mambapy=True)
    return found


def compared(
    name: str, batch: int, width: int
) -> tuple[Callable[[int], Inputs], Scan, dict[str, Scan]]:
    """Of one of ``SCANS``: what makes its input of a length, ours, and those beside it."""
    half = width // 2
    if name == "Mamba":
        return partial(inputs_of_mamba, batch, width=width), selective_scan, peers()
    if name == "Mamba-2":
        ours, theirs = partial(ssd_scan, chunk=CHUNK), {"transformers": of_transformers_mamba2}
        return partial(inputs_of_mamba2, batch, width=width), ours, theirs
    return lambda length: {"x": torch.randn(batch, length, half)}, Mamba1(half), mixers(half)


def forward(scan: Scan, given: Inputs) -> None:
    """One call without gradients."""
    with torch.no_grad():
        scan(**given)


def both_ways(scan: Scan, given: Inputs) -> None:
    """One call, and the gradients of everything that it reads."""
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    y, _ = scan(**inputs)
    y.sum().backward()


WAYS: dict[str, Callable[[Scan, Inputs], None]] = {"forward": forward, "and backward": both_ways}


@dataclass(frozen=True)
class Bench:
    """How it is measured.

    Attributes:
        clock: gives seconds.
        repeats: of each pair.
        patience: seconds after which a peer is left out at greater lengths.
        out: a file that gets a JSON line for each number of milliseconds.
    """

    clock: Clock
    repeats: int
    patience: float
    out: Path | None = None

    def note(self, **values: Any) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.out.open("a") as out:
                out.write(json.dumps(values) + "\n")

    def seconds(self, run: Callable[[], None]) -> float:
        began = self.clock()
        run()
        return self.clock() - began

    def compare(
        self,
        name: str,
        lengths: list[int],
        make: Callable[[int], Inputs],
        ours: Scan,
        others: dict[str, Scan],
    ) -> None:
        """Prints a row for each length, way and peer, and how our own time grows."""
        for way, run in WAYS.items():
            left, own = set(others), dict.fromkeys(lengths, 0.0)
            for length in lengths:
                given = make(length)
                mine = partial(self.seconds, partial(run, ours, given))
                mine()
                own[length] = median(mine() for _ in range(self.repeats))
                row = {"figure": "scan", "scan": name, "way": way, "length": length}
                self.note(**row, by="modwright", ms=1e3 * own[length])
                cells = []
                for peer in others:
                    theirs = partial(self.seconds, partial(run, others[peer], given))
                    found = self.against(mine, theirs) if peer in left else None
                    if found is None:
                        cells.append(f"{peer} not run")
                        continue
                    took, ratio = found
                    cells.append(f"{peer} {1e3 * took:.1f}, ratio {ratio:.1f}")
                    self.note(**row, by=peer, ms=1e3 * took)
                    left -= {peer} if took > self.patience else set()
                ms = f"{1e3 * own[length]:.1f}"
                print(f"| {name} | {way} | {length} | {ms} | {'; '.join(cells)} |", flush=True)
            steps = [f"{b} / {a}: {own[b] / own[a]:.1f}" for a, b in pairwise(lengths)]
            print(f"| {name} | {way} | growth | {'; '.join(steps)} | |", flush=True)

    def against(
        self, mine: Callable[[], float], theirs: Callable[[], float]
    ) -> tuple[float, PairedRatio]:
        """Seconds of a peer and how many times as long it takes; a slow one runs once."""
        first = theirs()
        pairs = in_turns(mine, theirs, self.repeats) if first < self.patience else [(mine(), first)]
        return median(b for _, b in pairs), PairedRatio.of([b / a for a, b in pairs])


# Memory


def peak() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held(arm: str, length: int, width: int) -> None:
    """Prints what forward and backward hold beyond what was there, in this process."""
    scan = {"modwright": selective_scan, **peers()}[arm]
    both_ways(scan, inputs_of_mamba(1, 8, 8))
    given = inputs_of_mamba(1, length, width)
    before = peak()
    both_ways(scan, given)
    print(peak() - before)


def memory(bench: Bench, lengths: list[int], width: int) -> None:
    """Prints a row for each length, of the scans whose backward is not quadratic."""
    arms = ["modwright", *(name for name in peers() if name != "transformers")]
    print(f"forward and backward, {width} channels, MiB\n| length | {' | '.join(arms)} |")
    print(f"|---|{'---|' * len(arms)}")
    for length in lengths:
        sizes = ["--lengths", str(length), "--width", str(width)]
        cells = []
        for arm in arms:
            command = [sys.executable, __file__, "--held", arm, *sizes]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cells.append(float(done.stdout.split()[-1]))
            bench.note(figure="memory", by=arm, length=length, mib=cells[-1])
        print(f"| {length} | {' | '.join(f'{cell:.0f}' for cell in cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=512, help="channels that are scanned")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--scans", choices=SCANS, nargs="+", default=SCANS)
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--held", help="of --memory: the scan that this process runs")
    parser.add_argument("--out", type=Path, help="a file that gets a JSON line for each number")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    bench = Bench(CLOCKS[given.clock], given.repeats, given.patience, given.out)
    if given.held:
        held(given.held, given.lengths[-1], given.width)
        return
    if given.memory:
        memory(bench, given.lengths, given.width)
    else:
        print("| scan | | length | ms | peers: ms, and times as long |\n|---|---|---|---|---|")
        for name in given.scans:
            bench.compare(name, given.lengths, *compared(name, given.batch, given.width))
    print(
        f"\nbatch {given.batch}, {given.width} channels, float32, {given.threads} threads, "
        f"torch {torch.__version__}, {given.repeats} repeats, {given.clock} time"
    )


if __name__ == "__main__":
    main()
