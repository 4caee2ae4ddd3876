"""Checkpoints of a training under way: which of them are whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from modwright.core import distributed
from modwright.core.digest import sha256_of_file
from modwright.core.files import read_json, write_file

__all__ = ["CheckpointCompleteCallback", "newest_checkpoint", "remove_incomplete"]

_MARK = "whole.json"
# Of version 0.1: an empty file, which says only that all was written.
_OLD_MARK = "whole"


def newest_checkpoint(output: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end and is as it was written, or None.

    A process that is killed while it writes leaves a directory that looks like one, and a full disk
    files that are shorter than they should be.

    Example:
        >>> newest_checkpoint("nowhere") is None
        True
    """
    found = sorted(Path(output).glob("checkpoint-*"), key=_step, reverse=True)
    return next((path for path in found if _damage(path) is None), None)


def remove_incomplete(output: str | Path) -> list[str]:
    """Removes checkpoints that are not whole, and says what is wrong with each.

    One that was never finished goes without a word.
    """
    found = sorted(Path(output).glob("checkpoint-*"), key=_step)
    damaged = [(path, damage) for path in found if (damage := _damage(path)) is not None]
    for path, _ in damaged:
        shutil.rmtree(path, ignore_errors=True)
    return [f"{path.name} is left out: {damage}" for path, damage in damaged if damage]


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: None if nothing is, "" if it was never finished."""
    mark = checkpoint / _MARK
    if not mark.exists():
        return None if (checkpoint / _OLD_MARK).exists() else ""
    told = read_json(mark)
    if not isinstance(told, dict):
        return f"{_MARK} is damaged"
    for name, stored in told.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != stored["bytes"] or sha256_of_file(file) != stored["sha256"]:
            return f"{name} is not as it was written"
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


class CheckpointCompleteCallback(TrainerCallback):
    """Marks every checkpoint with the digests of its files, and logs wherever one is written.

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
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            (folder / _MARK).unlink(missing_ok=True)
            told = {
                path.relative_to(folder).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": sha256_of_file(path),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            write_file(folder / _MARK, json.dumps(told))
