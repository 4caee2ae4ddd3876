"""What PolyNorm costs forward and backward, against its formula in torch's operations.

Both run in turns in one process on the same input; the ratio is of pairs that ran one after the
other. Beside it, the bytes that autograd keeps of a call, as a multiple of the input's.

    python benchmarks/activation_speed.py --rows 4096 --width 1536 --repeats 30 --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from turns import CLOCKS, Clock, in_turns

from modwright.core.paired import PairedRatio
from modwright.nn.activations.polynomial_functions import (
    naive_poly_norm,
    naive_poly_relu,
    poly_norm,
    poly_relu,
)

KINDS = {"PolyNorm": (poly_norm, naive_poly_norm), "PolyReLU": (poly_relu, naive_poly_relu)}
Function = Callable[..., Tensor]


def seconds(function: Function, inputs: tuple[Tensor, ...], grad: Tensor, clock: Clock) -> float:
    """One forward and one backward pass."""
    began = clock()
    torch.autograd.grad(function(*inputs), inputs, grad)
    return clock() - began


def kept_bytes(function: Function, inputs: tuple[Tensor, ...]) -> int:
    """What autograd keeps of a call; a memory that is kept twice counts once."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = function(*inputs)
    del out
    return sum(found.values())


def row(name: str, given: argparse.Namespace, dtype: torch.dtype) -> list[str]:
    """Milliseconds of both, how many times as fast ours is, and what both keep."""
    torch.manual_seed(0)
    x = torch.randn(given.rows, given.width, dtype=dtype, requires_grad=True)
    coeff = torch.full((given.order,), 1 / given.order, requires_grad=True)
    inputs, grad = (x, coeff, torch.zeros(1, requires_grad=True)), torch.randn_like(x)
    ours, naive = KINDS[name]
    calls = [partial(seconds, f, inputs, grad, CLOCKS[given.clock]) for f in (ours, naive)]
    for call in calls:
        call()
    pairs = in_turns(calls[0], calls[1], given.repeats)
    mine, plain = (1e3 * median(side) for side in zip(*pairs))
    ratio = PairedRatio.of([long / short for short, long in pairs])
    size = x.numel() * x.element_size()
    kept = [kept_bytes(f, inputs) / size for f in (ours, naive)]
    cells = [f"{mine:.2f}", f"{plain:.2f}", str(ratio), *(f"{times:.2f}" for times in kept)]
    return [name, str(dtype).removeprefix("torch."), *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = Table("activation", "dtype", "own, ms", "formula, ms", "times as fast")
    for column in ("own keeps", "formula keeps"):
        table.add_column(column)
    table.title = f"[{given.rows}, {given.width}], forward and backward, order {given.order}"
    table.caption = (
        f"CPU, {given.threads} threads, torch {torch.__version__}; medians of {given.repeats} in "
        "turns; what is kept in multiples of the input's bytes"
    )
    for name in KINDS:
        for dtype in (torch.float32, torch.bfloat16):
            table.add_row(*row(name, given, dtype))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
