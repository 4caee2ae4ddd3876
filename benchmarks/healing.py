"""What healing gives back to a model that was cut: ways of healing, with seeds and controls.

A row is one way: perplexity on each held-out text after it and the share of the gap in
log-perplexity to the baseline that it closed, as the mean over seeds with the lowest and the
highest; a seed orders the windows that are learned from. Where the text's own loss takes part, the
control (the baseline, trained alike) stands below.

    modwright edit drop smollm2-135m --parts "attention[25,26,7,28]" -o out/four --no-eval
    python benchmarks/healing.py out/four --way full --way lora --tokens 16384 --seeds 3
    python benchmarks/healing.py out/cut --data lee-background --rate 1e-4 --rate 2e-4
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import modwright
from modwright.data import make_data
from modwright.training import Heal, HealResult, heal, store_teacher

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"learns": {"lora": {"r": 16}}},
    "norms": {"learns": "norms"},
    "own loss": {"own_loss": 1.0, "control": True},
    "half own loss": {"own_loss": 0.5, "control": True},
    "stored": {},
}
STORED = 64  # answers of the teacher at each token, in the way "stored"


def healed(cut: Any, baseline: Any, way: str, asked: argparse.Namespace) -> Iterator[HealResult]:
    """One healing of a copy of the cut for every seed."""
    for seed in range(asked.seeds):
        options = Heal(
            tokens=asked.tokens,
            learning_rate=asked.rate,
            length=asked.length,
            batch_tokens=asked.batch_tokens,
            arguments={"seed": seed, "use_cpu": True},
            **WAYS[way],
        )
        data = make_data(
            [{"text": name, "length": options.length} for name in asked.data], baseline.tokenizer
        )
        with tempfile.TemporaryDirectory() as folder:
            answers = None
            if way == "stored":
                place = Path(folder, "answers.safetensors")
                answers = store_teacher(
                    baseline, data.train, place, tokenizer=baseline.tokenizer, k=STORED
                )
            yield heal(
                copy.deepcopy(cut),
                baseline.model,
                baseline.tokenizer,
                data,
                {name: name for name in asked.held_out},
                options,
                answers=answers,
                log=lambda said: None,
            )


def spread(values: list[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cut", help="a checkpoint that was cut out of the baseline")
    parser.add_argument("--baseline", default="smollm2-135m")
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--data", nargs="+", default=["lee-background", "python-topics"])
    parser.add_argument("--held-out", nargs="+", default=["lee", "sklearn-descr"])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    baseline, cut = modwright.open(asked.baseline), modwright.open(asked.cut).model
    print(f"{sum(p.numel() for p in cut.parameters()):,} parameters, {asked}", flush=True)
    heads = [f"{name}{more}" for name in asked.held_out for more in ("", ", gap closed %")]
    print(f"| | {' | '.join(heads)} | tokens | seconds |\n|{'---|' * (len(heads) + 3)}")
    first = True
    for way in asked.way or ["full"]:
        found = list(healed(cut, baseline, way, asked))
        if first:
            for name, texts in (("baseline", found[0].baseline), ("cut", found[0].before)):
                cells = " | ".join(f"{texts[one].perplexity:.2f} |" for one in asked.held_out)
                print(f"| {name} | {cells} | | |")
            first = False
        cells = []
        for name in asked.held_out:
            cells.append(spread([one.after[name].perplexity for one in found]))
            cells.append(spread([100 * (one.gap_closed(name) or 0.0) for one in found], 0))
        tokens = "/".join(f"{one.tokens:,}" for one in found)
        seconds = f"{mean(one.seconds for one in found):.0f}"
        print(f"| {way} | {' | '.join(cells)} | {tokens} | {seconds} |", flush=True)
        controls = [one.control for one in found if one.control is not None]
        if controls:
            cells = " | ".join(
                f"{spread([texts[one].perplexity for texts in controls])} |"
                for one in asked.held_out
            )
            print(f"| {way}: control | {cells} | | |", flush=True)


if __name__ == "__main__":
    main()
