"""Time of one more token behind a context: models with states beside one with attention.

    python benchmarks/state_decode.py --repeats 50 --threads 1
    python benchmarks/state_decode.py --repeats 50 --threads 1 --out out/mamba-speed.jsonl

Models of about as many parameters, with random weights: attention with MLPs, and twice as many
blocks of Mamba or Mamba-2 without. Each reads the context, then one token after the other behind
it; caches are those that transformers makes. All models and contexts run in turns in one process. A
ratio is the median over turns of the time at a context and at the shortest one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache
from turns import CLOCKS, Clock

from modwright.core.compat.torch import tensors_of
from modwright.core.paired import PairedRatio
from modwright.edits.compose import compose

VOCABULARY, HEAD = 256, 64
MIXERS = {"Mamba": "mamba1", "Mamba-2": "mamba2"}


def models(width: int, blocks: int) -> dict[str, Any]:
    """Name -> model: attention with MLPs of 8/3 the width, or mixers alone in twice the blocks."""
    heads = width // HEAD
    shared = {"hidden_size": width, "vocab_size": VOCABULARY, "intermediate_size": 8 * width // 3}
    shared |= {"num_attention_heads": heads, "num_key_value_heads": heads, "check": False}
    make = partial(compose, "llama", tie_word_embeddings=True, **shared)
    found = {
        name: make({"attention[*]": mixer, "mlp[*]": None}, num_hidden_layers=2 * blocks)
        for name, mixer in MIXERS.items()
    }
    return found | {"attention": make(num_hidden_layers=blocks)}


@torch.no_grad()
def read(model: Any, context: int) -> Any:
    """The cache behind a context."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, VOCABULARY, (1, context))
    model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def seconds(model: Any, cache: Any, clock: Clock) -> float:
    """Of one token; a cache that grows is cut again."""
    token = torch.ones(1, 1, dtype=torch.long)
    began = clock()
    model(input_ids=token, cache=cache, use_cache=True)
    taken = clock() - began
    if all(layer.is_croppable for layer in cache.layers):
        cache.crop(-1)
    return taken


def cache_bytes(cache: Any) -> int:
    """Of all tensors that a cache holds."""
    held = tensors_of([list(vars(layer).values()) for layer in cache.layers])
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def crossing(contexts: list[int], attention: list[float], other: list[float]) -> float | None:
    """The context from which attention takes longer, between the two measured ones around it.

    Example:
        >>> crossing([16, 32, 64], [1.0, 2.0, 4.0], [2.5, 2.5, 2.5])
        40.0
    """
    gaps = [a - b for a, b in zip(attention, other)]
    for (near, below), (far, above) in zip(zip(contexts, gaps), list(zip(contexts, gaps))[1:]):
        if below < 0 <= above:
            return near + (far - near) * -below / (above - below)
    return None


def measure(
    made: dict[str, Any], contexts: list[int], repeats: int, clock: Clock
) -> tuple[dict[tuple[str, int], list[float]], dict[tuple[str, int], int]]:
    """Seconds of each model at each context, turn by turn; and the bytes of its cache."""
    caches = {(name, n): read(model, n) for name, model in made.items() for n in contexts}
    sizes = {key: cache_bytes(cache) for key, cache in caches.items()}
    runs: dict[tuple[str, int], Callable[[], float]] = {
        key: partial(seconds, made[key[0]], cache, clock) for key, cache in caches.items()
    }
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 2):
        for key in list(runs) if turn % 2 else reversed(runs):
            times[key].append(runs[key]())
    return {key: found[2:] for key, found in times.items()}, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=4, help="of attention; twice as many mixers")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[16, 64, 256, 1024, 2048, 4096, 8192, 16384]
    )
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, help="a file that gets a JSON line for each row")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    contexts, made = sorted(given.contexts), models(given.width, given.blocks)
    times, sizes = measure(made, contexts, given.repeats, CLOCKS[given.clock])
    print("| model | parameters | context | ms a token | of the shortest | cache, KB |")
    print("|---|--:|--:|--:|---|--:|")
    for name, model in made.items():
        parameters = sum(p.numel() for p in model.parameters())
        for n in contexts:
            ratio = PairedRatio.of(
                [b / a for a, b in zip(times[name, contexts[0]], times[name, n])]
            )
            took, size = 1e3 * median(times[name, n]), sizes[name, n]
            cells = f"{took:.2f} | {ratio:.2f} | {size / 1e3:,.0f}"
            print(f"| {name} | {parameters:,} | {n} | {cells} |")
            if given.out is not None:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                row = {"figure": "decode", "model": name, "context": n, "ms": took, "bytes": size}
                with given.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    for name in MIXERS:
        sides = ([median(times[one, n]) for n in contexts] for one in ("attention", name))
        found = crossing(contexts, *sides)
        where = "nowhere here" if found is None else f"from {found:,.0f} tokens on"
        print(f"\n{name} is quicker than attention {where}.")
    print(
        f"\nbatch 1, width {given.width}, float32, {given.threads} threads, "
        f"torch {torch.__version__}, {given.repeats} repeats, {given.clock} time"
    )


if __name__ == "__main__":
    main()
