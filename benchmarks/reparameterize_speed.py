"""The form that FMViT is trained in against the one that it is shipped in, side by side.

Both hold the same numbers and run in turns in one process; a ratio is the median over neighboring
runs, above 1 where the fused form is faster. Before that the logits of both are compared. Where
timm is installed, its Next-ViT of the same skeleton runs beside the fused form of the larger one.

    python benchmarks/reparameterize_speed.py --repeats 7 --threads 1
    python benchmarks/reparameterize_speed.py --repeats 7 --threads 2
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from torch import nn

from modwright.core.paired import PairedRatio
from modwright.models import create_model
from modwright.models.reparameterize import reparameterize

VARIANTS = ("fmvit_nano", "fmvit_nextvit_s_like")
PEER = ("fmvit_nextvit_s_like", "nextvit_small")
SIDE = 224


@torch.no_grad()
def with_statistics(model: Any) -> Any:
    """Fresh norms would fold into factors of 1: these have seen eight images of noise."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.5)
    model.train()(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


@torch.no_grad()
def seconds(model: Any, images: torch.Tensor) -> float:
    """One forward pass."""
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


def in_turns(
    one: Any, two: Any, images: torch.Tensor, repeats: int
) -> tuple[float, float, PairedRatio]:
    """Milliseconds of both, and how many times as fast the second is."""
    for model in (one, two):
        seconds(model, images)
    pairs = [(seconds(one, images), seconds(two, images)) for _ in range(repeats)]
    first, second = zip(*pairs)
    return 1e3 * median(first), 1e3 * median(second), PairedRatio.of([a / b for a, b in pairs])


@torch.no_grad()
def apart(one: Any, two: Any) -> str:
    """The largest difference of logits in parts of the largest one, and whether classes agree."""
    images = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected, found = one(images).logits, two(images).logits
    off = float((found - expected).abs().max() / expected.abs().max())
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    return f"logits apart by {off:.1e} of the largest, {same} of 8 classes the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    told, rows = [], []
    for name in options.variants:
        trained = with_statistics(create_model(name))
        fused = reparameterize(trained)
        told.append(f"{name}: {apart(trained, fused)}")
        for batch in (1, 8):
            images = torch.randn(batch, 3, SIDE, SIDE)
            for label, slower in {f"`{name}`": trained, **_peer(name)}.items():
                slow, fast, ratio = in_turns(slower, fused, images, options.repeats)
                rows.append(f"| {label} | {batch} | {slow:.0f} | {fast:.0f} | {ratio:.2f} |")
    print("\n".join(told))
    print("\n| as trained | batch | as trained, ms | fused here, ms | times as fast |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    print(
        f"\n{SIDE} pixels, float32, {options.threads} threads, torch {torch.__version__}, "
        f"{options.repeats} repeats"
    )


def _peer(name: str) -> dict[str, Any]:
    """Next-ViT as it is trained, beside the variant of its skeleton."""
    if name != PEER[0]:
        return {}
    try:
        import timm
    except ImportError:
        return {}
    return {f"timm `{PEER[1]}`": timm.create_model(PEER[1]).eval()}


if __name__ == "__main__":
    main()
