"""Inference of vision models here against the same architecture in transformers, side by side.

Both hold the same weights and run in turns in one process; a ratio is the median over neighbouring
runs, above 1 where ours is faster. The last lines say how time grows with the picture. On a machine
with other work ``--clock cpu`` counts the time of this process alone.

    python benchmarks/picture_speed.py --repeats 20 --threads 1
    python benchmarks/picture_speed.py --repeats 20 --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import (
    PoolFormerConfig,
    PoolFormerForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from modwright.models import create_model, import_weights

Clock = Callable[[], float]


def _poolformer() -> Any:
    return PoolFormerForImageClassification(PoolFormerConfig(num_labels=1000))


def _vit() -> Any:
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=1000, layer_norm_eps=1e-6))


def _swin() -> Any:
    return SwinForImageClassification(SwinConfig(num_labels=1000))


PEERS = {
    "poolformer_s12": _poolformer,
    "deit_small_patch16_224": _vit,
    "swin_tiny_patch4_window7_224": _swin,
}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@torch.no_grad()
def seconds(model: Any, pictures: torch.Tensor, clock: Clock) -> float:
    """One forward pass."""
    began = clock()
    model(pictures)
    return clock() - began


def side_by_side(
    ours: Any, theirs: Any, pictures: torch.Tensor, repeats: int, clock: Clock
) -> tuple[Any, ...]:
    """Medians of both and of the ratios of neighbouring runs; each is first every second time."""
    both = (ours, theirs)
    for model in both:
        seconds(model, pictures, clock)
    pairs = []
    for turn in range(repeats):
        order = (0, 1) if turn % 2 else (1, 0)
        taken = {which: seconds(both[which], pictures, clock) for which in order}
        pairs.append((taken[0], taken[1]))
    mine, peers = zip(*pairs)
    return median(mine), median(peers), median(other / own for own, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    print("| model | batch | here, ms | transformers, ms | times as fast |")
    print("|---|---|---|---|---|")
    for name, make in PEERS.items():
        theirs = make().eval()
        ours = create_model(name).eval()
        import_weights(ours, theirs.state_dict())
        for batch in options.batches:
            pictures = torch.randn(batch, 3, 224, 224)
            mine, peers, ratio = side_by_side(ours, theirs, pictures, options.repeats, clock)
            print(f"| `{name}` | {batch} | {mine * 1e3:.0f} | {peers * 1e3:.0f} | {ratio:.2f} |")
    ours = create_model("poolformer_s12").eval()
    small, large = (
        median(seconds(ours, torch.randn(1, 3, side, side), clock) for _ in range(options.repeats))
        for side in (64, 256)
    )
    print(
        f"\npoolformer_s12, 256 against 64 pixels: {large / small:.1f} times, of 16 times the area"
    )
    print(
        f"float32, {options.threads} threads, torch {torch.__version__}, "
        f"{options.repeats} repeats, {options.clock} clock"
    )


if __name__ == "__main__":
    main()
