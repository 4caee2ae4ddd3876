"""Progress and printing for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modwright.core.progress import PlainProgress, Progress, Task

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["emit_json", "log", "make_progress", "output"]


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


class _RichTask:
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task

    def advance(self, steps: int = 1) -> None:
        self.bar.advance(self.task, steps)


class RichProgress:
    """One bar with total and time left per phase."""

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            yield _RichTask(bar, bar.add_task(name, total=total))


def make_progress() -> Progress:
    """Bars where there is a terminal, plain lines every few seconds where there is none."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
