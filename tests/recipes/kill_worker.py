"""Runs recipes in processes that are killed at a chosen moment; for the tests alone.

Reads one request per line and answers with one. Each run is a fork of this process, which has run
the first recipe once, so that everything is imported. The moment is a call of one function of the
package; the process kills itself there as the system would, with SIGKILL.
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

import modwright.checkpoint.saving as saving
import modwright.core.files as files
import modwright.recipes.run as running
import modwright.recipes.run_directory as working
import modwright.recipes.steps.method as method_step
import modwright.report.writing as reporting
import modwright.training.callbacks as learning
import modwright.training.checkpoints as keeping
import modwright.training.trainer as training
from modwright.calibration import Statistics
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.core.digest import sha256_of
from modwright.recipes.load import parse_recipe

torch.set_num_threads(1)


def _half(self: Any, index: int, values: Any) -> None:
    (self.directory / f"block-{index:04d}.partial").write_bytes(b"half a file")


# moment: object, name of its function, whether the call is made before the process dies.
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "calibration, a block is not written": (Statistics, "store", False),
    "calibration, its statistics are written, its stream is not": (Statistics, "store", True),
    "calibration, the stream is written": (HiddenStatesFile, "rename", True),
    "calibration, the walk is noted": (Statistics, "_claim", True),
    "apply begins": (method_step, "apply_plan", False),
    "apply is done": (method_step, "apply_plan", True),
    "measuring begins": (running, "measure_stage", False),
    "measuring is done": (running, "measure_stage", True),
    "a save has weights and nothing else": (saving, "_write_weights", True),
    "a save is whole and has the wrong name": (files, "_swap", False),
    "a save has its name": (files, "_swap", True),
    "a state is not yet known": (working, "write_file", False),
    "a state is known": (working, "write_file", True),
    "the report is half written": (reporting, "render_html", True),
    "work is not removed": (working.RunDirectory, "remove", False),
}
# Of recipes that learn.
LEARNING: dict[str, tuple[Any, str, bool]] = {
    "a training step is done": (training.ObjectiveTrainer, "training_step", True),
    "a checkpoint has weights alone": (training.ObjectiveTrainer, "save_model", True),
    "a checkpoint lacks its mark": (keeping.CheckpointCompleteCallback, "on_save", False),
    "a checkpoint is whole": (keeping.CheckpointCompleteCallback, "on_save", True),
    "a best state is kept and not noted": (learning.BestStateCallback, "_keep", True),
    "what has learned is measured": (running, "measure_stage", True),
    "a state is not yet known": (working, "write_file", False),
}


class Moments:
    """Counts the calls of every moment's function, and kills the process at one of them."""

    def __init__(self, moments: dict[str, Any], moment: str = "", call: int = 0) -> None:
        self.moments, self.moment, self.call = moments, moment, call
        self.calls = dict.fromkeys(moments, 0)
        for place, name in {(place, name) for place, name, _ in moments.values()}:
            setattr(place, name, self._watched(place, name, getattr(place, name)))

    def _watched(self, place: Any, name: str, function: Callable[..., Any]) -> Any:
        mine = {m: after for m, (p, n, after) in self.moments.items() if p is place and n == name}

        def watched(*args: Any, **kwargs: Any) -> Any:
            for moment in mine:
                self.calls[moment] += 1
            dies = self.moment in mine and self.calls[self.moment] == self.call
            if dies and not mine[self.moment]:
                if name == "store":
                    _half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*args, **kwargs)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return watched


def tensors_digest(model: Any) -> str:
    """Of all tensors of a model."""
    return sha256_of(*(part for named in sorted(model.state_dict().items()) for part in named))


def work(request: dict[str, Any], answer: int) -> None:
    watched = LEARNING if request.get("learns") else MOMENTS
    moments = Moments(watched, request.get("moment", ""), request.get("call", 0))
    said: list[str] = []
    opened: list[tuple[Any, str]] = []
    open_model = running.open_model

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = open_model(*args, **kwargs)
        opened.append((found, tensors_digest(found.model)))
        return found

    running.open_model = noted
    result = running.run(
        parse_recipe(request["recipe"]),
        request["out"],
        force=request.get("force", False),
        check=False,
        log=said.append,
    )
    info = {"calls": moments.calls, "said": said, "done_before": result.done_before}
    info["source_stays"] = all(tensors_digest(one.model) == digest for one, digest in opened)
    os.write(answer, json.dumps(info).encode())


def forked(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(request, writing)
        except BaseException as error:
            os.write(writing, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        info = stream.read()
    _, status = os.waitpid(child, 0)
    return {**(json.loads(info) if info else {}), "code": os.waitstatus_to_exitcode(status)}


def main() -> None:
    first = json.loads(sys.stdin.readline())
    running.run(parse_recipe(first["recipe"]), first["out"], check=False)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
