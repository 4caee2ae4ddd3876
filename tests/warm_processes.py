"""New processes that are forked from one which has imported torch and transformers already.

Importing both takes seconds, and a hundred tests open a checkpoint in a new process. With
``--full``, and where a test is marked ``cold_processes``, they are started as users start them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import modwright

__all__ = ["WarmProcess", "cold", "run", "run_python", "seconds_of_processes", "start"]

SERVER = Path(__file__).with_name("warm_server.py")
LIBRARY = str(Path(modwright.__file__).parents[1])
_seconds: list[float] = []
_is_cold = [False]


@contextmanager
def cold(wanted: bool = True) -> Iterator[None]:
    """Within the block processes are started from nothing."""
    _is_cold.append(wanted)
    try:
        yield
    finally:
        _is_cold.pop()


def seconds_of_processes() -> float:
    """Processor seconds of all warm processes that ended."""
    return sum(_seconds)


@cache
def _server() -> subprocess.Popen[str]:
    """One for this process; it ends with its standard input."""
    command = [sys.executable, str(SERVER)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env)


class WarmProcess:
    """A forked process, with as much of ``subprocess.Popen`` as tests use.

    Args:
        words: what follows ``python``: a script, or ``-c`` and code, or ``-m`` and a module, and
            arguments.
        env: the whole environment.
        cwd: the directory that it runs in.
        library: modwright is imported in it already; for programs that import it first.
    """

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        library: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._kept = tempfile.TemporaryDirectory(prefix="warm-")
        self._folder = Path(self._kept.name)
        request = {"words": list(words), "env": dict(env), "folder": str(self._folder)}
        request["cwd"] = str(cwd or Path.cwd())
        request["library"] = LIBRARY if library else ""
        server = _server()
        assert server.stdin is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        self.pid = int(self._read("pid"))

    def _read(self, name: str, timeout: float = 600) -> str:
        """What the server leaves in a file, once it is there."""
        until = time.monotonic() + timeout
        while not (self._folder / name).exists():
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(name, timeout)
            time.sleep(0.01)
        return (self._folder / name).read_text()

    def wait(self, timeout: float = 900) -> int:
        if self.returncode is None:
            self.returncode, seconds = json.loads(self._read("ended", timeout))
            _seconds.append(seconds)
        return int(self.returncode or 0)

    def communicate(self, timeout: float = 900) -> tuple[str, str]:
        self.wait(timeout)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        self._kept.cleanup()
        return out, err

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def start(
    words: Sequence[str], env: Mapping[str, str], cwd: Path | None, library: bool = False
) -> Any:
    """``python WORDS`` as a process whose output is kept."""
    if not _is_cold[-1]:
        return WarmProcess(words, env, cwd, library)
    out: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=env, cwd=cwd, **out)


def run_python(
    words: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 900,
    library: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs ``python WORDS``; its exit code, and what it printed."""
    process = start(words, os.environ if env is None else env, cwd, library)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(list(words), process.wait(), out, err)


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Any, **more: Any) -> Any:
    """Stands for ``subprocess.run`` where the library opens a checkpoint in a new process."""
    library = json.loads(command[3])["library"] == "imported"
    return run_python(command[1:], env, cwd, library=library)
