"""The log of a run, a file beside the output that always stays; the facts that it begins with."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch

from modwright.checkpoint import peak_rss_bytes
from modwright.checkpoint.auxiliary_files import weight_files
from modwright.checkpoint.classes import HEADS, model_class
from modwright.checkpoint.source import Source
from modwright.core.errors import InvalidInputError, ProcessFailed
from modwright.core.progress import Progress, Task

__all__ = ["RunLog", "auto_class", "environment", "listed", "log_path", "opened_files", "versions"]

# A phase that takes long says how far it is, this often (seconds).
_EVERY = 30.0


def log_path(output: Path) -> Path:
    """``out/demo`` is logged in ``out/demo.log``."""
    place = output.resolve()
    return place.with_name(place.name + ".log")


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A log that cannot be written, on a full disk, is no reason to stop."""


class RunLog:
    """What happens in a run, written down with times, and everything else that modwright logs.

    It is kept in memory until work begins, so that a run that is refused before leaves no trace.
    """

    def __init__(self, output: Path) -> None:
        self.path = log_path(output)
        self._logger = logging.getLogger("modwright")
        self._handler: logging.Handler = MemoryHandler(1 << 30, logging.CRITICAL + 1)

    @contextmanager
    def open(self) -> Iterator[RunLog]:
        """Listens for as long as the block runs; writes down what ends it."""
        before = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self._handler)
        try:
            yield self
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._logger.removeHandler(self._handler)
            self._logger.setLevel(before)
            self._handler.close()

    def write(self, message: str) -> None:
        """One line, or several that belong together."""
        self._logger.info(message)

    def begin(self, goes_on: bool) -> None:
        """From here on all is on disk; ``goes_on`` adds to the log of the run that was stopped."""
        self._keep("a" if goes_on else "w")

    def _keep(self, mode: str) -> None:
        waiting = self._handler
        if not isinstance(waiting, MemoryHandler):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept: logging.Handler = _File(self.path, mode, encoding="utf-8")
        except OSError:
            return  # the run itself says so when it writes
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.removeHandler(waiting)
        self._logger.addHandler(kept)
        self._handler = kept
        for record in waiting.buffer:
            kept.handle(record)

    def _failed(self, error: BaseException) -> None:
        """A refusal before work leaves no new file; what nobody foresaw always does."""
        foreseen = hasattr(error, "exit_code") or isinstance(error, KeyboardInterrupt)
        if not foreseen or self.path.exists():
            self._keep("a")
        line = " ".join(str(error).split()) or type(error).__name__
        info = getattr(error, "trace", "") if isinstance(error, ProcessFailed) else ""
        trace = info or "".join(traceback.format_exception(error))
        with suppress(Exception):
            self._logger.error("%s: %s\n%s", type(error).__name__, line, trace.rstrip())

    def listener(self, log: Callable[[str], None]) -> Callable[[str], None]:
        """``log``, which is written down, too."""

        def both(message: str) -> None:
            log(message)
            self.write(message)

        return both

    def progress(self, shown: Progress) -> Progress:
        """``shown``, with the begin and the end of every phase written down."""
        return _Logged(shown, self.write)


class _Logged:
    def __init__(self, shown: Progress, write: Callable[[str], None]) -> None:
        self.shown, self.write = shown, write

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        self.write(f"{name}: begins, {total} steps")
        with self.shown.phase(name, total) as task:
            logged = _LoggedTask(name, total, task, self.write)
            try:
                yield logged
            except BaseException:
                self.write(f"{name}: stopped at {logged.done}/{total}")
                raise
        self.write(f"{name}: {logged.done}/{total} in {time.monotonic() - logged.start:.1f} s")


class _LoggedTask:
    def __init__(self, name: str, total: int, task: Task, write: Callable[[str], None]) -> None:
        self.name, self.total, self.task, self.write = name, total, task, write
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.task.advance(steps)
        self.done += steps
        now = time.monotonic()
        if now - self.last >= _EVERY and self.done < self.total:
            self.last = now
            self.write(f"{self.name}: {self.done}/{self.total}")


def versions() -> dict[str, str]:
    """The packages that decide about results."""
    names = ("modwright", "torch", "transformers", "safetensors", "numpy", "scipy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def environment(model: Any) -> dict[str, Any]:
    """What the numbers of a report were measured on."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "memory": f"{peak_rss_bytes() / 1e9:.2f} GB at most",
    }


def opened_files(source: Source) -> dict[str, Any]:
    """Name and bytes of the files that were opened, as stored; nothing of random weights."""
    files = () if source.path is None else weight_files(source.path)
    if not files:
        return {}
    name = files[0].name if len(files) == 1 else f"{len(files)} weight files"
    return {"opened_file": name, "opened_bytes": sum(file.stat().st_size for file in files)}


def auto_class(model: Any) -> str:
    """The Auto class that opens a checkpoint of this model, head and all."""
    # What opens anything is named where nothing says more.
    for head, auto in sorted(HEADS.items(), key=lambda item: item[0] == "base"):
        with suppress(InvalidInputError):
            if model_class(model.config, head) is type(model):
                return auto
    return "AutoModel"


def listed(facts: Mapping[str, Any]) -> str:
    """Facts on one line: ``threads 2, dtype float32``."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
