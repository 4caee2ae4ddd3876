"""Opens standalone checkpoints where importing modwright fails, runs them and saves them again.

Run as a script: ``standalone_worker.py JOBS PLACE``. A job is a JSON mapping with ``folder``,
``auto``, ``batch`` (safetensors file) and ``name``. It prints one JSON list of answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def stock_refuses(model: Any, folder: str) -> bool:
    """The stock class of a standalone one does not open its checkpoint."""
    stock = type(model).__mro__[2]
    try:
        stock.from_pretrained(folder)
    except Exception:
        return True
    return False


def main(jobs: list[dict[str, str]], place: Path) -> list[dict[str, Any]]:
    os.environ["HF_MODULES_CACHE"] = str(place / "modules")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.modules["modwright"] = None  # type: ignore[assignment]
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()

    def opened(job: dict[str, str], folder: str) -> Any:
        auto = getattr(transformers, job["auto"])
        return auto.from_pretrained(folder, trust_remote_code=True).eval()

    def run(model: Any, job: dict[str, str], turn: str) -> None:
        with torch.no_grad():
            out = model(**load_file(job["batch"]))[0]
        save_file({"out": out.contiguous()}, place / f"{job['name']}-{turn}.safetensors")

    models = [opened(job, job["folder"]) for job in jobs]
    answers = []
    for job, model in zip(jobs, models):
        run(model, job, "first")
        again = place / f"{job['name']}-again"
        model.save_pretrained(again)
        back = opened(job, str(again))
        run(back, job, "again")
        head = back.get_output_embeddings()
        answers.append(
            {
                "classes": [type(model).__name__, type(back).__name__],
                "code_of_again": sorted(path.name for path in again.glob("*.py")),
                "tied": head is not None and head.weight is back.get_input_embeddings().weight,
                "refused_by_stock": stock_refuses(model, job["folder"]),
            }
        )
    return answers


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), Path(sys.argv[2]))))
