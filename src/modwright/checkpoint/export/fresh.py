"""Opens an exported checkpoint in a new process that has no modwright, and compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modwright.checkpoint.export.comparing import Compared, compare, probes
from modwright.checkpoint.export.fresh_worker import write_greedily
from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode

if TYPE_CHECKING:
    from torch import Tensor

    from modwright.checkpoint.export.work import Work

__all__ = ["Fresh", "compare_in_new_process", "open_in_new_process"]

_WORKER = Path(__file__).with_name("fresh_worker.py")


@dataclass(frozen=True)
class Fresh:
    """What the other process said.

    Attributes:
        model_class: what it opened.
        outputs: first output for each batch of `comparing.probes`.
        written: tokens that it wrote, greedily and with a cache; None if it does not write.
    """

    model_class: str
    outputs: tuple[Tensor, ...]
    written: Tensor | None


def open_in_new_process(work: Work, folder: Path, auto: str, *, trust: bool) -> Fresh:
    """Opens ``folder`` with an Auto class where importing modwright fails.

    Threads are as many as here, so that sums are taken in the same order.

    Raises:
        VerificationError: it does not open; says what the other process said last.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="modwright-") as place:
        asked, answered = Path(place, "asked.safetensors"), Path(place, "answered.safetensors")
        batches = {
            f"{i}.{name}": t for i, b in enumerate(probes(work.model)) for name, t in b.items()
        }
        save_file(batches, asked)
        threads = str(torch.get_num_threads())
        request = {
            "folder": str(folder.resolve()),
            "auto": auto,
            "trust": trust,
            "asked": str(asked),
            "answered": str(answered),
        }
        done = subprocess.run(
            [sys.executable, "-c", _WORKER.read_text(encoding="utf-8"), json.dumps(request)],
            capture_output=True,
            text=True,
            cwd=place,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": place,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
            },
            check=False,
        )
        if done.returncode or not answered.exists():
            last = (done.stderr.strip().split("\n") or ["no word"])[-1]
            raise VerificationError(
                f"the exported checkpoint does not open in a new process without modwright: {last}"
            )
        found = load_file(answered)
    outputs = tuple(found[str(i)] for i in range(len(found) - ("written" in found)))
    return Fresh(done.stdout.strip(), outputs, found.get("written"))


def compare_in_new_process(work: Work, folder: Path, auto: str, *, trust: bool = False) -> Compared:
    """Compares another process with the live model: outputs bit by bit, and what it writes.

    Raises:
        VerificationError: it does not open there, or computes something else.
    """
    import torch
    import transformers

    fresh = open_in_new_process(work, folder, auto, trust=trust)
    outputs = iter(fresh.outputs)
    said = f"opened as {fresh.model_class}"
    if fresh.written is not None:
        batches = list(probes(work.model))
        with torch.no_grad(), eval_mode(work.model):
            live = write_greedily(work.model, batches[1])
        if not torch.equal(fresh.written, live):
            raise VerificationError("the exported checkpoint writes other tokens than the model")
        said += ", and wrote the same tokens with its cache"
    return compare(
        work,
        lambda batch: next(outputs),
        opened_with=f"transformers {transformers.__version__} in a process without modwright",
        tolerance=0.0,
        said=said,
    )
