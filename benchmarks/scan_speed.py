"""Scans of Mamba and Mamba-2 beside those of transformers and mambapy, and a step of decoding.

    python benchmarks/scan_speed.py --repeats 7 --threads 1
    python benchmarks/scan_speed.py --memory
    python benchmarks/scan_speed.py --decode --repeats 200

All run in turns in one process, on the same input. A ratio is the median over neighboring runs,
above 1 where the scan of modwright is faster. A peer whose run took longer than ``--patience``
seconds is not run at greater lengths: transformers' own loop has a backward that grows as the
square of the length. The second prints what a run holds beyond its input, each in a process of its
own; the third the time of one token at a short and at a long context.

mambapy is a peer where it can be imported: ``pip install --no-deps -r requirements-bench.lock``.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, MambaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mamba.modeling_mamba import MambaMixer, mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from turns import CLOCKS, Clock, in_turns

from modwright.core.paired import PairedRatio
from modwright.nn.selective_scan import selective_scan
from modwright.nn.ssd import ssd_scan
from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.mamba2 import Mamba2

Scan = Callable[..., Any]
Inputs = dict[str, Tensor]
STATES, HEAD, CHUNK = 16, 64, 64
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
    """

    clock: Clock
    repeats: int
    patience: float

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
                cells = []
                for peer, scan in others.items():
                    theirs = partial(self.seconds, partial(run, scan, given))
                    cells.append(self.against(peer, mine, theirs, left))
                print(
                    f"| {name} | {way} | {length} | {1e3 * own[length]:.1f} | {'; '.join(cells)} |"
                )
            steps = [f"{b} / {a}: {own[b] / own[a]:.1f}" for a, b in pairwise(lengths)]
            print(f"| {name} | {way} | growth | {'; '.join(steps)} | |", flush=True)

    def against(
        self, peer: str, mine: Callable[[], float], theirs: Callable[[], float], left: set[str]
    ) -> str:
        """Milliseconds of a peer and how many times as long it takes; ``left`` loses a slow one."""
        if peer not in left:
            return f"{peer} not run"
        slow = theirs() > self.patience
        if slow:
            left.remove(peer)
        pairs = in_turns(mine, theirs, 1 if slow else self.repeats)
        ratio = PairedRatio.of([b / a for a, b in pairs])
        return f"{peer} {1e3 * median(b for _, b in pairs):.1f}, ratio {ratio:.1f}"


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


def memory(length: int, width: int) -> None:
    """Prints a row for each scan that is not quadratic."""
    print(f"forward and backward, {length} tokens, {width} channels\n| scan | MiB |\n|---|---|")
    for arm in ("modwright", *(name for name in peers() if name != "transformers")):
        sizes = ["--lengths", str(length), "--width", str(width)]
        command = [sys.executable, __file__, "--held", arm, *sizes]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {arm} | {float(done.stdout.split()[-1]):.0f} |", flush=True)


# Decoding


def step_of_mixer(mixer: Any, width: int, context: int) -> Callable[[], None]:
    """One token behind a context, by a mixer with a state."""
    with torch.no_grad():
        _, state = mixer(torch.randn(1, context, width))
    token = torch.randn(1, 1, width)

    def run() -> None:
        with torch.no_grad():
            mixer(token, state)

    return run


def step_of_attention(width: int, context: int) -> Callable[[], None]:
    """One token behind a context, by the attention of a llama with its cache."""
    heads = width // HEAD
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    part, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)
    token, cache = torch.randn(1, 1, width), DynamicCache(config=config)
    cache.update(*torch.randn(2, 1, heads, context, HEAD), 0)
    angles = rotary(token, torch.tensor([[context]]))

    def run() -> None:
        with torch.no_grad():
            part(token, position_embeddings=angles, attention_mask=None, cache=cache)
        cache.crop(-1)

    return run


def decode(bench: Bench, contexts: tuple[int, int], width: int) -> None:
    """Prints milliseconds of a token at a short and at a long context, and their ratio."""
    short, long = contexts
    makes: dict[str, Callable[[int], Callable[[], None]]] = {
        "Mamba": partial(step_of_mixer, Mamba1(width), width),
        "Mamba-2": partial(step_of_mixer, Mamba2(width, HEAD, head_dim=HEAD), width),
        "attention": partial(step_of_attention, width),
    }
    print(f"| mixer, width {width} | ms at {short} | ms at {long} | ratio |\n|---|---|---|---|")
    for name, make in makes.items():
        one, other = (partial(bench.seconds, make(context)) for context in (short, long))
        one(), other()
        pairs = in_turns(one, other, bench.repeats)
        first, second = (1e3 * median(side) for side in zip(*pairs))
        ratio = PairedRatio.of([b / a for a, b in pairs])
        print(f"| {name} | {first:.3f} | {second:.3f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=512, help="channels that are scanned")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--contexts", type=int, nargs=2, default=(16, 4096), help="of --decode")
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--held", help="of --memory: the scan that this process runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    bench = Bench(CLOCKS[given.clock], given.repeats, given.patience)
    if given.held:
        held(given.held, given.lengths[-1], given.width)
        return
    if given.memory:
        memory(given.lengths[-1], given.width)
    elif given.decode:
        decode(bench, tuple(given.contexts), given.width)
    else:
        print("| scan | | length | ms | peers: ms, and times as long |\n|---|---|---|---|---|")
        make = partial(inputs_of_mamba, given.batch, width=given.width)
        bench.compare("Mamba", given.lengths, make, selective_scan, peers())
        make = partial(inputs_of_mamba2, given.batch, width=given.width)
        ours, theirs = partial(ssd_scan, chunk=CHUNK), {"transformers": of_transformers_mamba2}
        bench.compare("Mamba-2", given.lengths, make, ours, theirs)
        half = given.width // 2
        whole = lambda length: {"x": torch.randn(given.batch, length, half)}  # noqa: E731
        bench.compare("mixer of Mamba", given.lengths, whole, Mamba1(half), mixers(half))
    print(
        f"\nbatch {given.batch}, {given.width} channels, float32, {given.threads} threads, "
        f"torch {torch.__version__}, {given.repeats} repeats, {given.clock} time"
    )


if __name__ == "__main__":
    main()
