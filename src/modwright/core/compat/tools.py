"""What accelerate, datasets, gguf and the evaluation harness have no public name for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

__all__ = ["data_fingerprint", "forget_processes", "is_task_file", "read_number"]


def forget_processes() -> None:
    """accelerate keeps its processes for ever; another group may start after this."""
    from accelerate import PartialState

    PartialState._reset_state()


def data_fingerprint(split: Any) -> str | None:
    """What datasets tells one data set from another by."""
    return getattr(split, "_fingerprint", None)


def read_number(reader: Any, offset: int, dtype: Any) -> int:
    """A number of a GGUF file: the reader has public fields, but no public reading at a place."""
    return int(reader._get(offset, dtype)[0])


def is_task_file(name: str) -> bool:
    """Whether a name is the path of a file with one task of lm-eval, which needs no others."""
    from lm_eval.tasks._index import Kind, TaskIndex

    with contextlib.suppress(Exception):  # what is wrong with it is said when it is loaded
        entry = TaskIndex.entry_from_path(Path(name))
        return entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK)
    return False
