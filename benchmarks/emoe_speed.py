"""How fast the experts of EMoE run: dense, masked, and dispatched, beside the work that is left.

Parts first, then a model: SmolLM2 with experts in all its layers. The three forms run in turns in
one process; a ratio is the median over neighboring runs. "bound" is the ratio that the
multiplications would give.

    python benchmarks/emoe_speed.py --repeats 5 --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import modwright
from modwright.core.paired import PairedRatio
from modwright.cost import Pass, compare_speed, part_macs
from modwright.nn import ExpertFeedForward, ExpertShape, FeedForward, FeedForwardShape
from modwright.surgery import make_method
from modwright.surgery.routing import set_routing

SIZES = {"SmolLM2": (576, 1536), "Llama-2-7B": (4096, 11008)}
SPLITS = ((16, 4), (64, 16))
TOKENS = (1, 2048)
FORMS = ("dense", "mask", "dispatch")


@dataclass(frozen=True)
class Timing:
    """Seconds of one form, and how many times faster than dense it was in the neighboring run."""

    seconds: float
    ratio: PairedRatio


def in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Medians of alternating runs, after two to warm up. The first is what others are over."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    base = seconds[next(iter(runs))]
    return {
        name: Timing(statistics.median(taken), PairedRatio.of([b / t for b, t in zip(base, taken)]))
        for name, taken in seconds.items()
    }


def parts(width: int, inner: int, experts: int, top_k: int) -> dict[str, nn.Module]:
    """The same weights in three forms."""
    dense = FeedForward(FeedForwardShape(width, inner, "silu", gated=True), F.silu)
    found: dict[str, nn.Module] = {"dense": dense}
    for mode in FORMS[1:]:
        shape = ExpertShape(width, inner, "silu", True, num_experts=experts, top_k=top_k, mode=mode)
        part = ExpertFeedForward(shape, F.silu)
        part.load_state_dict(dense.state_dict(), strict=False)
        part.tie_keys()
        found[mode] = part
    return found


def work_left(width: int, inner: int, experts: int, top_k: int) -> float:
    """Multiplications of the dense part over those of the dispatched one."""
    maps = 3 * width * inner
    return maps / (maps * top_k / experts + experts * width)


@torch.no_grad()
def time_parts(sizes: list[str], repeats: int) -> Table:
    table = Table("part", "experts", "tokens", "dense ms", "mask", "dispatch", "bound")
    for name in sizes:
        width, inner = SIZES[name]
        for experts, top_k in SPLITS:
            forms = parts(width, inner, experts, top_k)
            for tokens in TOKENS:
                x = torch.randn(1, tokens, width)
                runs = {form: (lambda part=part, x=x: part(x)) for form, part in forms.items()}
                # A single token is over in a millisecond: more turns, at no cost.
                found = in_turns(runs, repeats if tokens > 1 else 40 * repeats)
                cells = [f"{name}, {width} x {inner}", f"{top_k} of {experts}", str(tokens)]
                cells += [f"{1e3 * found['dense'].seconds:.2f}"]
                cells += [f"{found[form].ratio:.2f}" for form in FORMS[1:]]
                table.add_row(*cells, f"{work_left(width, inner, experts, top_k):.2f}")
    table.title = "one feed-forward part, score avg_key, times as fast as dense"
    return table


def mlp_share(model: Any, tokens: int) -> float:
    """Share of the multiplications of the blocks that stands in MLPs."""
    blocks = modwright.Anatomy.of(model).blocks
    run = Pass(1, tokens)
    mlps = sum(part_macs(block.mlp, run) for block in blocks)
    return mlps / (mlps + sum(part_macs(block.attention, run) for block in blocks))


def time_model(name: str, splits: list[tuple[int, int]], repeats: int) -> Table:
    opened = modwright.open(name)
    table = Table("experts", "form", "prefill tokens/s", "ratio", "decode tokens/s", "ratio")
    for experts, top_k in splits:
        options = {"num_experts": experts, "top_k": top_k, "layers": "all", "score": "avg_key"}
        # Speed does not depend on which neurons stand together.
        method = make_method("emoe", {**options, "cluster": "contiguous"})
        model = modwright.apply(opened.model, method).model
        for mode in FORMS[1:]:
            set_routing(model, mode=mode)
            found = compare_speed(
                opened.model, model, batch=1, prompt=512, new_tokens=32, repeats=repeats
            )
            cells = [f"{top_k} of {experts}", mode]
            for phase, (_, before, _), (_, after, _) in zip(
                found.ratios, found.first.phases(), found.second.phases()
            ):
                cells += [f"{before:,.1f} -> {after:,.1f}", f"{found.ratios[phase]:.2f}"]
            table.add_row(*cells)
    share = mlp_share(opened.model, 512)
    table.title = f"{name}, experts in all layers, batch 1, 512 + 32 tokens: dense -> experts"
    table.caption = f"MLPs are {share:.0%} of the blocks' multiplications at 512 tokens"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=["SmolLM2"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    console = Console(width=130)
    told = f"float32, {given.threads} threads, torch {torch.__version__}, {given.repeats} repeats"
    table = time_parts(given.sizes, given.repeats)
    table.caption = told
    console.print(table)
    if not given.parts_only:
        table = time_model(given.model, list(SPLITS), given.repeats)
        table.caption = f"{told}; {table.caption}"
        console.print(table)


if __name__ == "__main__":
    main()
