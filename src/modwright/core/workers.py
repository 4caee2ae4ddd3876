"""Processes that do one piece of work after another, so that each imports torch only once."""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from modwright.core.errors import InvalidInputError, ModwrightError, ProcessFailed, first_line
from modwright.core.handover import handover
from modwright.core.plugins import GUARD, load_plugins, plugin_being_loaded

__all__ = ["work_in_processes"]


def work_in_processes(
    function: str,
    requests: Mapping[str, Mapping[str, Any]],
    processes: int,
    done: Callable[[str, Any], None] = lambda name, answer: None,
) -> None:
    """Calls a function for each request, in processes of one thread that know the plugins.

    After the first failure no further request is given out; what is under way is finished. The
    processes end with this one, however it ends.

    Args:
        function: ``"module:name"``; it takes a request and returns plain JSON values.
        requests: by the name that messages have, plain JSON values.
        processes: how many at most.
        done: hears, one at a time, of each request that is answered.

    Raises:
        InvalidInputError: a file that is imported for what it registers does its work then.
        ProcessFailed: a call failed, or its process ended; says which and why.

    Example:
        >>> seen = {}
        >>> pieces = {"one": {"folder": "a/b"}, "two": {"folder": "c"}}
        >>> work_in_processes("os:listdir", {}, 2, seen.__setitem__)  # nothing to do
        >>> seen
        {}
    """
    if (plugin := plugin_being_loaded()) is not None:
        raise InvalidInputError(
            f"{plugin} does its work when it is imported for what it registers; put the work "
            f"below `{GUARD}`"
        )
    waiting, failed = deque(requests.items()), list[ProcessFailed]()
    lock, told = threading.Lock(), handover()
    here = str(Path(__file__).resolve().parents[2])
    paths = filter(None, (here, os.environ.get("PYTHONPATH", "")))
    env = {**os.environ, **told.environment(), "PYTHONPATH": os.pathsep.join(paths)}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", __name__, json.dumps([function, *told.folders])]
    started: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []

    def work(process: subprocess.Popen[str]) -> None:
        while not failed:
            with lock:
                if not waiting:
                    return
                name, request = waiting.popleft()
            answer = _asked(process, request)
            with lock:
                if "error" in answer:
                    problem = "; ".join([f"{name}: {answer['error']}", *told.unknown])
                    failed.append(ProcessFailed(problem, answer["code"], answer.get("trace", "")))
                else:
                    done(name, answer["found"])

    try:
        for _ in range(min(processes, len(waiting))):
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started.append(subprocess.Popen(command, text=True, env=env, **pipes))
            threads.append(threading.Thread(target=work, args=started[-1:], daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
    finally:
        for process in started:
            process.kill()  # it is idle, unless this process is being stopped
        for process, thread in zip(started, threads):
            thread.join()
            process.communicate()
    if failed:
        raise failed[0]


def _asked(process: subprocess.Popen[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """What a process answers to a request, or how it ended."""
    inlet, outlet = _pipe(process.stdin), _pipe(process.stdout)
    line = ""
    with suppress(BrokenPipeError):
        inlet.write(json.dumps(request) + "\n")
        inlet.flush()
        line = outlet.readline()
    if not line.endswith("\n"):
        ended = f"its process ended with code {process.wait()}; finished work is kept, and the "
        return {"error": f"{ended}same command goes on from it", "code": 1}
    answer: dict[str, Any] = json.loads(line)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _requests(inlet: IO[str]) -> queue.Queue[str]:
    """Lines as they come. Where who asked is gone, this process ends at once, in the middle."""
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in inlet:
            found.put(line)
        os.kill(os.getpid(), signal.SIGTERM)  # also a main thread that is inside of torch

    threading.Thread(target=read, daemon=True).start()
    return found


def _serve(function: str, folders: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the work prints is no answer
    requests = _requests(sys.stdin)
    sys.path += [folder for folder in folders if folder not in sys.path]
    module, _, name = function.partition(":")
    while True:
        request = json.loads(requests.get())
        answer: dict[str, Any]
        try:
            load_plugins()
            answer = {"found": getattr(importlib.import_module(module), name)(**request)}
        except ModwrightError as error:
            answer = {"error": str(error), "code": error.exit_code}
        except Exception as error:
            said = f"failed: {type(error).__name__}: {first_line(error)}"
            answer = {"error": said, "code": 1, "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*(lambda said: (said[0], said[1:]))(json.loads(sys.argv[1])))
