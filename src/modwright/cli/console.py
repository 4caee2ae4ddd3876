"""What commands print and show while they work, and how they open a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modwright.core.progress import PlainProgress, Progress, Task

if TYPE_CHECKING:
    from rich.console import Console

    from modwright.checkpoint import Checkpoint

__all__ = ["emit_json", "log", "make_progress", "open_checkpoint", "output"]


def output() -> Console:
    """Where results go."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 100
    return Console(file=sys.stdout, width=wide, highlight=False, markup=False, emoji=False)


def log(message: str) -> None:
    """A sentence on what is done now, for people."""
    print(message, file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """Machine output on stdout; numbers that are not finite, which JSON has not, become null."""
    import json

    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_checkpoint(source: Any, **options: Any) -> Checkpoint:
    """As `modwright.checkpoint.open`; its notes go to stderr."""
    from modwright.checkpoint import open as open_quietly

    opened = open_quietly(source, **options)
    for note in opened.notes:
        log(f"note: {note}")
    return opened


class _RichTask:
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task

    def advance(self, steps: int = 1) -> None:
        self.bar.advance(self.task, steps)


class RichProgress:
    """One bar with total and time left per phase."""

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        from rich import progress as of
        from rich.console import Console

        columns = (
            of.TextColumn("{task.description}", markup=False),
            of.BarColumn(),
            of.MofNCompleteColumn(),
            of.TimeElapsedColumn(),
            of.TextColumn("left"),
            of.TimeRemainingColumn(),
        )
        with of.Progress(*columns, console=Console(stderr=True)) as bar:
            yield _RichTask(bar, bar.add_task(name, total=total))


def make_progress() -> Progress:
    """Bars where there is a terminal, plain lines every few seconds where there is none."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
