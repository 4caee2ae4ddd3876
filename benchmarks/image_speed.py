"""Inference of vision models here against the same architecture in transformers, side by side.

Both hold the same weights and run in turns in one process; a ratio is the median over neighboring
runs, above 1 where ours is faster. The last lines say how time grows with the image. On a machine
with other work ``--clock cpu`` counts the time of this process alone.

    python benchmarks/image_speed.py --repeats 20 --threads 1
    python benchmarks/image_speed.py --repeats 20 --threads 2
"""

from __future__ import annotations

import argparse
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
from turns import CLOCKS, forward_seconds, forward_side_by_side

from modwright.models import create_model, import_weights


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
            images = torch.randn(batch, 3, 224, 224)
            mine, peers, ratio = forward_side_by_side(ours, theirs, images, options.repeats, clock)
            print(f"| `{name}` | {batch} | {mine:.0f} | {peers:.0f} | {ratio:.2f} |")
    ours = create_model("poolformer_s12").eval()
    small, large = (
        median(
            forward_seconds(ours, torch.randn(1, 3, side, side), clock)
            for _ in range(options.repeats)
        )
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
