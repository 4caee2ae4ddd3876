"""Run by `warm_processes`: has torch and transformers imported, and forks for each line it reads.

A line is a request: words behind ``python``, environment, directory, a folder for the output, and
where modwright is found if it is imported before the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

IMPORTED = ["transformers.models.llama.modeling_llama", "transformers.trainer", "torch._dynamo"]
IMPORTED += ["sklearn.datasets", "matplotlib.axes"]  # not in every environment
LIBRARY = ["modwright", "modwright.checkpoint.export", "modwright.cli.entry", "modwright.models"]
LIBRARY += ["modwright.recipes.run", "modwright.recipes.training", "modwright.training"]


def import_all(names: list[str]) -> None:
    """Imports what is there, and keeps it out of the way of collectors after forks."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def be_a_new_process(request: dict[str, Any]) -> None:
    """The forked process becomes what the request asks for, and ends."""
    folder = Path(request["folder"])
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        target = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, stream.fileno())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if cache := os.environ.get("HF_MODULES_CACHE"):  # transformers reads it when it is imported
        importlib.import_module("transformers.dynamic_module_utils").HF_MODULES_CACHE = cache
    program, *sys.argv = request["words"]
    own = "" if program in ("-c", "-m") else str(Path(program).parent)
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [own, *paths]
    ended = 0
    try:
        if program == "-m":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        elif program == "-c":
            code, sys.argv[0] = sys.argv[0], "-c"
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv.insert(0, program)
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        ended = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        ended = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(ended)


def wait_for(request: dict[str, Any]) -> None:
    """Forks once more; leaves the process's id, then how it ended and what time it took."""
    folder = Path(request["folder"])
    child = os.fork()
    if not child:
        be_a_new_process(request)
    leave(folder / "pid", str(child))
    _, status = os.waitpid(child, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = os.waitstatus_to_exitcode(status)
    leave(folder / "ended", json.dumps([code, used.ru_utime + used.ru_stime]))


def leave(target: Path, text: str) -> None:
    part = target.with_suffix(".part")
    part.write_text(text)
    part.rename(target)


def with_library(place: str) -> TextIO:
    """A fork that imports modwright, too, and serves what is written into the stream."""
    reading, writing = os.pipe()
    if not os.fork():
        os.close(writing)
        sys.path[:1] = [place]
        import_all(LIBRARY)
        with os.fdopen(reading) as requests:
            serve(requests)
        os._exit(0)
    os.close(reading)
    return os.fdopen(writing, "w")


def serve(requests: TextIO) -> None:
    """Forks for each line; those that want modwright go to a fork that has it."""
    library: TextIO | None = None
    for line in requests:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        request = json.loads(line)
        if request["library"] and "modwright" not in sys.modules:
            library = library or with_library(request["library"])
            print(line, end="", file=library, flush=True)
        elif not os.fork():
            os.setsid()
            try:
                wait_for(request)
            finally:
                os._exit(0)


if __name__ == "__main__":
    import_all(IMPORTED)
    serve(sys.stdin)
