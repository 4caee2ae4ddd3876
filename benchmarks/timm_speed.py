"""Inference of models here against timm's of the same names, in timm's own environment.

Both hold the same weights and run in turns in one process; a ratio is the median over neighboring
runs, above 1 where ours is faster. On a machine with other work ``--clock cpu`` counts the time of
this process alone. The last column is the largest difference of their logits. That
of PoolFormer is not small: timm norms the pooled features, the paper's code the map before pooling.

    make .venv-timm/.ready
    .venv-timm/bin/python benchmarks/timm_speed.py --repeats 20 --threads 1
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
import transformers
from timm.models.metaformer import checkpoint_filter_fn
from turns import CLOCKS, forward_side_by_side

from modwright.models import create_model, to_checkpoint_format

# name -> the layout that timm reads: its own, or one that it converts
PEERS = {
    "poolformer_s12": "official",
    "tnt_s_patch16_224": "timm",
    "deit_small_patch16_224": "official",
    "swin_tiny_patch4_window7_224": "timm",
    "resnet50": "torchvision",
}
CONVERTED = {"poolformer_s12": checkpoint_filter_fn}


def pair(name: str) -> tuple[Any, Any]:
    """Our model with random weights, and timm's with the same."""
    ours, theirs = create_model(name).eval(), timm.create_model(name).eval()
    weights = to_checkpoint_format(ours, PEERS[name])
    if name in CONVERTED:
        weights = CONVERTED[name](weights, theirs)
    theirs.load_state_dict(weights)
    return ours, theirs


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    torch.manual_seed(0)
    print("| model | batch | here, ms | timm, ms | times as fast | logits off by |")
    print("|---|---|---|---|---|---|")
    for name in PEERS:
        ours, theirs = pair(name)
        for batch in options.batches:
            images = torch.randn(batch, 3, 224, 224)
            off = float((ours(images).logits - theirs(images)).abs().max())
            times = forward_side_by_side(ours, theirs, images, options.repeats, clock)
            mine, others, ratio = times
            print(f"| `{name}` | {batch} | {mine:.0f} | {others:.0f} | {ratio:.2f} | {off:.0e} |")
    print(
        f"\nfloat32, {options.threads} threads, {options.repeats} repeats, {options.clock} clock; "
        f"torch {torch.__version__}, timm {timm.__version__}, "
        f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
