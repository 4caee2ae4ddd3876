"""Reopens a saved checkpoint in a new process and compares it with the live model, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.core.subprocesses import open_in_new_process
from modwright.edits.remodeled import is_plain
from modwright.edits.verify import probe_batch

__all__ = ["Reopened", "check_reopens"]


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
    opened = open_in_new_process(
        directory,
        [probe],
        library="left out" if plain else "imported",
        what="the saved checkpoint",
    )
    (output,) = opened.outputs
    if opened.names != tuple(sorted(name for name, _ in model.named_parameters())):
        raise VerificationError("the reopened checkpoint has other parameters than the live model")
    if not torch.equal(output, live):
        off = float((output.float() - live.float()).abs().max())
        raise VerificationError(
            f"the reopened checkpoint computes something else (off by {off:.1e})"
        )
    return Reopened(opened.model_class, opened.opener, plain)
