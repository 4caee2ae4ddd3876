"""What a norm costs: LayerNorm, RMSNorm and CRMSNorm side by side, beside no norm at all.

All run in turns in one process, on the same input; a cell is the median of a call, and its ratio to
LayerNorm without gain and shift, the least work of a pre-norm model. Then a whole model in its
forms, where the norms are a small part of the work.

    python benchmarks/norm_speed.py --repeats 50 --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from modwright.cost import compare_speed
from modwright.nn import CRMSNorm, RMSNorm
from modwright.surgery import apply, make_method

ROWS, WIDTHS, EPS = (197, 512, 1024), (192, 384, 768), 1e-5
FORMS = {
    "rms": {"form": "rms"},
    "rms, folded": {"form": "rms", "fold_affine": True},
    "rms, training form": {"form": "rms", "training": True},
    "crms": {"form": "crms"},
}


def norms(width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed: name -> function of (rows, width)."""
    weight, bias = torch.rand(width), torch.rand(width)
    plain, gain = RMSNorm(width, EPS, weight=False, cast_first=False), RMSNorm(width, EPS)
    both = RMSNorm(width, EPS, bias=True, cast_first=False)
    small = CRMSNorm(width - 1, EPS)
    return {
        "LayerNorm": lambda x: F.layer_norm(x, (width,), None, None, EPS),
        "LayerNorm, affine": lambda x: F.layer_norm(x, (width,), weight, bias, EPS),
        "RMSNorm": plain,
        "RMSNorm, gain": gain,
        "RMSNorm, affine": both,
        "CRMSNorm": lambda z: small(z),
        "no norm": lambda x: x,
    }


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 5):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found[5:]) for name, found in times.items()}


@torch.no_grad()
def norm_table(repeats: int) -> tuple[Table, list[str]]:
    """One row for each shape, and the shapes at which RMSNorm is more than a tenth slower."""
    table = Table("rows x width", *norms(8), title="ms of a call (ratio to LayerNorm)")
    slower = []
    for rows in ROWS:
        for width in WIDTHS:
            x = torch.randn(rows, width)
            z = x[:, :-1].contiguous()
            given = {name: z if name == "CRMSNorm" else x for name in norms(width)}
            calls = {n: (lambda f=f, a=given[n]: f(a)) for n, f in norms(width).items()}
            found = medians(calls, repeats)
            bare = found["LayerNorm"]
            cells = [f"{t * 1e3:.3f} ({t / bare:.2f})" for t in found.values()]
            table.add_row(f"{rows} x {width}", *cells)
            if found["RMSNorm"] > 1.1 * bare:
                slower.append(f"{rows} x {width}: {found['RMSNorm'] / bare:.2f}")
    return table, slower


def model_table(names: Iterable[str], tokens: int, repeats: int) -> Table:
    """A model of GPT-2's small size with random weights, before and after."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    table = Table("form", "prefill tokens/s", "ratio", "decode tokens/s", "ratio")
    table.title = f"GPT-2 small, random weights: 1 x ({tokens} + 16) tokens, as it is -> converted"
    for name in names:
        result = apply(model, make_method("pre_rmsnorm", FORMS[name]), check=False).model
        found = compare_speed(model, result, batch=1, prompt=tokens, new_tokens=16, repeats=repeats)
        cells = []
        for phase, (_, before, _), (_, after, _) in zip(
            found.ratios, found.first.phases(), found.second.phases()
        ):
            cells += [f"{before:,.0f} -> {after:,.0f}", f"{found.ratios[phase]:.2f}"]
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="prompt of the whole model")
    parser.add_argument("--model-repeats", type=int, default=5, help="0: norms alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=150)
    table, slower = norm_table(given.repeats)
    table.caption = (
        f"float32, CPU, {given.threads} threads, torch {torch.__version__}; medians of "
        f"{given.repeats} calls in turns; CRMSNorm reads one channel less"
    )
    console.print(table)
    statement = "; ".join(slower) or "nowhere"
    console.print(
        f"RMSNorm more than 10 % slower than LayerNorm without gain and shift: {statement}"
    )
    if given.model_repeats:
        console.print(model_table(FORMS, given.tokens, given.model_repeats))


if __name__ == "__main__":
    main()
