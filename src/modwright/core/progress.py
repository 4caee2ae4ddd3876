"""Progress as an object that is passed in: silent in the library, bars or plain lines outside.

Library code opens a phase with its total and advances it; who listens decides how it looks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

__all__ = ["SILENT", "PlainProgress", "Progress", "Task"]


class Task(Protocol):
    """One phase under way."""

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` more as done."""


class Progress(Protocol):
    """What library code needs to know of a progress display."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Task]:
        """A context manager around one phase of ``total`` steps."""


class _Silent:
    def advance(self, steps: int = 1) -> None:
        pass

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        yield self


SILENT = _Silent()


class _PlainTask:
    def __init__(self, name: str, total: int, every: float, stream: TextIO) -> None:
        self.name, self.total, self.every, self.stream = name, total, every, stream
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.last >= self.every and self.done < self.total:
            self.last = now
            left = (now - self.start) / max(self.done, 1) * (self.total - self.done)
            line = f"{self.name}: {self.done}/{self.total}, about {left:.0f} s left"
            print(line, file=self.stream, flush=True)


class PlainProgress:
    """Plain lines for logs: one every ``every`` seconds, and one when a longer phase ends."""

    def __init__(self, every: float = 5.0, stream: TextIO | None = None) -> None:
        self.every, self.stream = every, stream if stream is not None else sys.stderr

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        task = _PlainTask(name, total, self.every, self.stream)
        yield task
        seconds = time.monotonic() - task.start
        if seconds >= 2:
            print(f"{name}: {task.done}/{total} in {seconds:.0f} s", file=self.stream, flush=True)
