"""What an MLP that is cut out of a nested one costs, beside the whole one and beside a mask.

A mask over the neurons gives the same numbers and saves nothing: it is the peer. All run in turns
in one process on the same input; ratios are of pairs that ran one after the other.

    python benchmarks/nested_mlp_speed.py --hidden-size 768 --repeats 100 --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from turns import CLOCKS, Clock, in_turns

from modwright.core.paired import PairedRatio
from modwright.nn.channel_mixers.nested_feed_forward import NestedFeedForward, NestedShape


@torch.no_grad()
def seconds(run: Callable[[Tensor], Tensor], x: Tensor, clock: Clock) -> float:
    """One forward pass."""
    began = clock()
    run(x)
    return clock() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    d = given.hidden_size
    mlp = NestedFeedForward(NestedShape(d, 4 * d, "gelu"), F.gelu).eval()
    x, clock = torch.randn(1, given.tokens, d), CLOCKS[given.clock]
    table = Table(title=f"MLP of {d} and {4 * d}, {given.tokens} tokens, {given.threads} threads")
    for column in ("width", "µs", "whole, µs", "times as fast as whole", "as a mask"):
        table.add_column(column, justify="right")

    def whole(x: Tensor) -> Tensor:
        mlp.width = 4 * d
        return mlp(x)

    for width in mlp.shape.widths or ():
        mask = (torch.arange(4 * d) < width).float()

        def cut(x: Tensor, width: int = width) -> Tensor:
            mlp.width = width
            return mlp(x)

        def masked(x: Tensor, mask: Tensor = mask) -> Tensor:
            return mlp.down_proj(F.gelu(mlp.up_proj(x)) * mask)

        assert torch.allclose(cut(x), masked(x), atol=1e-5)
        cells = []
        for other in (whole, masked):
            for run in (cut, other):
                seconds(run, x, clock)
            pairs = in_turns(
                lambda run=cut: seconds(run, x, clock),
                lambda run=other: seconds(run, x, clock),
                given.repeats,
            )
            ours, theirs = (1e6 * median(side) for side in zip(*pairs))
            cells.append((ours, theirs, PairedRatio.of([b / a for a, b in pairs])))
        (ours, theirs, ratio), (_, _, against) = cells
        table.add_row(f"{width}", f"{ours:.1f}", f"{theirs:.1f}", str(ratio), str(against))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
