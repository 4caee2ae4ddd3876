"""How much sooner a study ends in two processes of one thread than in one.

Three arms and three seeds of a small language model that learns for some steps. The ratio is of
whole studies, with the start of the processes; one process runs the cells itself.

    python benchmarks/study_workers.py --steps 40
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from modwright.recipes.study import parse_study
from modwright.recipes.study_run import run_study


def study(steps: int) -> dict[str, Any]:
    """Three widths of the MLP, three seeds."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    told = {"data": {"text": "lee-background", "length": 64}, "learning_rate": 3e-3}
    evaluate = {"perplexity": {"data": "lee", "windows": 5, "length": 64}}
    return {
        "recipe": {
            "model": {"compose": "llama", **sizes, **heads, "tokenizer": "bytes"},
            "steps": [{"train": {**told, "max_steps": steps, "per_device_train_batch_size": 8}}],
            "evaluate": {**evaluate, "generation": None, "speed": None},
        },
        "arms": {"model.intermediate_size": [128, 192, 256]},
        "seeds": [0, 1, 2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    asked = parse_study(study(options.steps))
    seconds = {}
    with tempfile.TemporaryDirectory() as place:
        run_study(parse_study({**study(1), "seeds": [0]}), Path(place, "first"))  # imports
        for workers in (1, options.workers):
            began = time.perf_counter()
            run_study(asked, Path(place, f"of-{workers}"), workers=workers)
            seconds[workers] = time.perf_counter() - began
    print("| processes | seconds | times as fast |\n|---|---|---|")
    for workers, took in seconds.items():
        print(f"| {workers} | {took:.1f} | {seconds[1] / took:.2f} |")


if __name__ == "__main__":
    main()
