"""What agreement with the original costs beside perplexity: processor time of both, in turns.

    python benchmarks/agreement_cost.py --windows 2 --repeats 3

Processor time of one thread, so that other work on the machine hardly counts. Divergence runs both
models and compares their distributions; perplexity runs one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import modwright
from modwright.metrics.divergence import divergence
from modwright.metrics.perplexity import PerplexityRecipe, perplexity


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    opened = modwright.open(given.model)
    model, tokenizer = opened.model, opened.tokenizer
    recipe = PerplexityRecipe("lee", given.windows, given.length)
    work: dict[str, Callable[[], object]] = {
        "perplexity": lambda: perplexity(model, tokenizer, recipe),
        "agreement": lambda: divergence(model, model, tokenizer, recipe),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for measure in work.values():
        measure()
    for _ in range(given.repeats):
        for name, measure in work.items():
            times[name].append(seconds(measure))
    for name, found in times.items():
        print(f"{name:12} {statistics.median(found):6.2f} s (median of {given.repeats})")
    ratio = statistics.median(
        two / one for one, two in zip(times["perplexity"], times["agreement"])
    )
    print(f"agreement / perplexity {ratio:.2f}")


if __name__ == "__main__":
    main()
