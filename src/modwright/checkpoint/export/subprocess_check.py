"""Opens an exported checkpoint in a new process that has no modwright, and compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modwright.checkpoint.export.comparing import ParityReport, compare, probes
from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.core.subprocess_worker import write_greedily
from modwright.core.subprocesses import open_in_new_process

if TYPE_CHECKING:
    from modwright.checkpoint.export.export_job import ExportJob

__all__ = ["compare_in_new_process"]


def compare_in_new_process(
    work: ExportJob, folder: Path, auto: str, *, trust: bool = False
) -> ParityReport:
    """Compares another process with the live model: outputs bit by bit, and what it writes.

    Raises:
        VerificationError: it does not open there, or computes something else.
    """
    import torch
    import transformers

    batches = list(probes(work.model))
    fresh = open_in_new_process(
        folder,
        batches,
        library="forbidden",
        what="the exported checkpoint",
        auto=auto,
        trust=trust,
        write=1,
    )
    outputs = iter(fresh.outputs)
    said = f"opened as {fresh.model_class}"
    if fresh.written is not None:
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
