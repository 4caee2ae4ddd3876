"""The log of a run: one file beside the output, which stays whatever becomes of the run.

It is kept in memory until work begins, so that a run that is refused before leaves no trace. Then
it holds, with times: what the machine is, the resolved recipe, what was said, every phase, every
refusal, and the traceback of whatever went wrong.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modwright.core.errors import ProcessFailed
from modwright.core.progress import Progress, Task

__all__ = ["RunLog", "log_path"]

# A phase that takes long says how far it is, this often (seconds).
_EVERY = 30.0


def log_path(output: Path) -> Path:
    """``out/demo`` is logged in ``out/demo.log``.

    Example:
        >>> log_path(Path("/models/demo")).name
        'demo.log'
    """
    place = output.resolve()
    return place.with_name(place.name + ".log")


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A log that cannot be written, on a full disk, is no reason to stop."""


class _Waiting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class RunLog:
    """What happens in a run, written down with times.

    Everything that modwright logs while it is open goes in, too.
    """

    def __init__(self, output: Path) -> None:
        self.path = log_path(output)
        self._logger = logging.getLogger("modwright")
        self._handler: logging.Handler = _Waiting()

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
        """Work begins: from here on all is on disk.

        ``goes_on`` adds to the log of the run that was stopped; else it begins anew.
        """
        self._keep("a" if goes_on else "w")

    def _keep(self, mode: str) -> None:
        if not isinstance(self._handler, _Waiting):
            return
        waiting = self._handler
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept: logging.Handler = _File(self.path, mode, encoding="utf-8")
        except OSError:
            return  # the run itself says so when it writes
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.removeHandler(waiting)
        self._logger.addHandler(kept)
        self._handler = kept
        for record in waiting.records:
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
        return _Logged(shown, self)


class _Logged:
    def __init__(self, shown: Progress, run_log: RunLog) -> None:
        self.shown, self.run_log = shown, run_log

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Task]:
        self.run_log.write(f"{name}: begins, {total} steps")
        with self.shown.phase(name, total) as task:
            logged = _LoggedTask(name, total, task, self.run_log)
            try:
                yield logged
            except BaseException:
                self.run_log.write(f"{name}: stopped at {logged.done}/{total}")
                raise
        seconds = time.monotonic() - logged.start
        self.run_log.write(f"{name}: {logged.done}/{total} in {seconds:.1f} s")


class _LoggedTask:
    def __init__(self, name: str, total: int, task: Task, run_log: RunLog) -> None:
        self.name, self.total, self.task, self.run_log = name, total, task, run_log
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.task.advance(steps)
        self.done += steps
        now = time.monotonic()
        if now - self.last >= _EVERY and self.done < self.total:
            self.last = now
            self.run_log.write(f"{self.name}: {self.done}/{self.total}")
