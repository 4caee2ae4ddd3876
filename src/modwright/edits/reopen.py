"""Reopens a saved checkpoint in a new process and compares it with the live model, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.edits.remodelled import is_plain
from modwright.edits.verify import probe_batch

__all__ = ["Reopened", "check_reopens"]

_WORKER = Path(__file__).with_name("reopen_worker.py")


@dataclass(frozen=True)
class Reopened:
    """How a new process saw the checkpoint."""

    model_class: str
    opened_with: str
    plain: bool

    def __str__(self) -> str:
        who = "stock transformers" if self.plain else "transformers after `import modwright`"
        return f"a new process with {who} opened it as {self.model_class}; outputs are bit-equal"


@torch.no_grad()
def check_reopens(model: Any, directory: Path) -> Reopened:
    """Opens ``directory`` with Auto classes in a new process and compares outputs and names.

    Threads are the same there, so that sums are taken in the same order.

    Raises:
        VerificationError: it does not open, or computes something else.
    """
    plain = is_plain(model)
    probe = {name: t.cpu() for name, t in probe_batch(model).items()}
    with eval_mode(model):
        live = model(**{name: t.to(model.device) for name, t in probe.items()})[0].cpu()
    with tempfile.TemporaryDirectory(prefix="modwright-") as place:
        asked, answered = Path(place, "probe.safetensors"), Path(place, "output.safetensors")
        save_file(probe, asked)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(
            torch.get_num_threads()
        )
        done = subprocess.run(
            [
                sys.executable,
                str(_WORKER),
                str(asked),
                str(answered),
                "plain" if plain else "edited",
                str(directory),
            ],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode or not answered.exists():
            last = (done.stderr.strip().split("\n") or ["no word"])[-1]
            raise VerificationError(f"the saved checkpoint does not open in a new process: {last}")
        with safe_open(answered, "pt") as stored:
            told = stored.metadata()
            output = stored.get_tensor("output")
    names = sorted(name for name, _ in model.named_parameters())
    if told["names"].split("\n") != names:
        raise VerificationError("the reopened checkpoint has other parameters than the live model")
    if not torch.equal(output, live):
        off = float((output.float() - live.float()).abs().max())
        raise VerificationError(
            f"the reopened checkpoint computes something else (off by {off:.1e})"
        )
    return Reopened(told["class"], told["opener"], plain)
