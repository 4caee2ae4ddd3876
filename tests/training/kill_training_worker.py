"""Runs ``modwright train`` in processes that are killed at a chosen moment; for the tests alone.

Reads one request per line and answers with one. Each command runs in a fork of this process, which
has trained once, so that everything is imported. The moment is a call of one function; the process
kills itself there as the system would, with SIGKILL.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

import modwright.core.files as files
import modwright.recipes.run_directory as working
import modwright.training.checkpoints as keeping
import modwright.training.trainer as training
from modwright.cli.entry import run_command

torch.set_num_threads(1)

# moment: object, name of its function, whether the call is made before the process dies.
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "a step is done": (training.ObjectiveTrainer, "training_step", True),
    "a checkpoint has weights alone": (training.ObjectiveTrainer, "save_model", True),
    "a checkpoint lacks its state": (training.ObjectiveTrainer, "_save_rng_state", True),
    "a checkpoint lacks its mark": (keeping.CheckpointCompleteCallback, "on_save", False),
    "a checkpoint is whole": (keeping.CheckpointCompleteCallback, "on_save", True),
    "the output is whole and has the wrong name": (files, "_swap", False),
    "work is not removed": (working.RunDirectory, "remove", False),
}


def kill_at(moment: str, call: int) -> None:
    """Replaces the function of a moment by one that counts its calls and kills the process."""
    place, name, after = MOMENTS[moment]
    function: Callable[..., Any] = getattr(place, name)
    calls = 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        done = function(*args, **kwargs) if after or calls != call else None
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(place, name, watched)


def run(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        if request.get("moment"):
            kill_at(request["moment"], request["call"])
        os._exit(run_command(request["arguments"]))
    os.close(writing)
    with os.fdopen(reading) as said:
        told = said.read()
    status = os.waitpid(child, 0)[1]
    return {"code": os.waitstatus_to_exitcode(status), "said": told}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    assert run_command(json.loads(sys.stdin.readline())["arguments"]) == 0
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()
