"""Checkpoints of a training under way: which of them are whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from modwright.core import distributed

__all__ = ["WholeCheckpoints", "forget_broken", "newest_checkpoint"]

_MARK = "whole"


def newest_checkpoint(output: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    A process that is killed while it writes leaves a directory that looks like one.

    Example:
        >>> newest_checkpoint("nowhere") is None
        True
    """
    whole = [path.parent for path in Path(output).glob(f"checkpoint-*/{_MARK}")]
    return max(whole, key=_step, default=None)


def forget_broken(output: str | Path) -> None:
    """Removes checkpoints that were not written to their end."""
    for path in Path(output).glob("checkpoint-*"):
        if not (path / _MARK).exists():
            shutil.rmtree(path, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class WholeCheckpoints(TrainerCallback):
    """Marks every checkpoint when all of it is there, and logs wherever one is written.

    Losses are logged as means since the last entry. With an entry at every checkpoint, a training
    that goes on from one has the same entries as one that never stopped. It is the last of the
    callbacks: what others add to a checkpoint is there before the mark.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.barrier()  # each process stores its own random numbers
        if state.is_world_process_zero:
            Path(args.output_dir, f"checkpoint-{state.global_step}", _MARK).touch()
