"""One of several processes that calibrate together; the tests start it as a launcher would.

What each is to do, and what is to go wrong in which, is told in the environment of this script
alone.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, SecondMoments, Similarity, calibrate
from modwright.checkpoint import open as open_checkpoint
from modwright.core import distributed
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.data.text import from_sequences

COLLECTORS: dict[str, tuple[Any, ...]] = {
    "similarity": (Similarity(),),
    "bare": (Similarity(drop_norm=False),),
    "gaps": (BlockDistance(3),),
    "grams": (SecondMoments(),),
    "together": (SecondMoments(), BlockDistance(2)),
}


def data(sequences: int) -> Any:
    """Sequences of different lengths, so that batches are padded, in batches of two."""
    drawn = torch.Generator().manual_seed(sequences)
    lengths = [5 + 3 * (i % 4) for i in range(sequences)]
    rows = [torch.randint(3, 128, (length,), generator=drawn) for length in lengths]
    return from_sequences(rows, 0, batch_size=2)


class Trouble:
    """A progress that makes trouble after some steps."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step, self.done = kind, step, 0

    def phase(self, name: str, total: int) -> Any:
        return nullcontext(self)

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.done == self.step:
            getattr(self, self.kind)()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self) -> None:
        time.sleep(10)

    def refuse(self) -> None:
        raise InvalidInputError("the activations here are not finite; check the weights")

    def crash(self) -> None:
        raise ZeroDivisionError("a crash")


def walk(case: dict[str, Any], index: int) -> Any:
    trouble = case.get("trouble")
    how: dict[str, Any] = {}
    if trouble and trouble["process"] == index:
        how["progress"] = Trouble(trouble["kind"], trouble["step"])
    model = open_checkpoint(case["model"], dtype=case.get("dtype")).model
    directory = case["directory"] and Path(case["directory"])
    collectors = COLLECTORS[case["collectors"]]
    windows = data(case["sequences"])
    return calibrate(Anatomy.of(model), windows, collectors, directory=directory, **how)


def main() -> None:
    asked = json.loads(os.environ["SHARE_WORKER"])
    torch.set_num_threads(1)
    if "patience" in asked:
        distributed.PATIENCE = datetime.timedelta(seconds=asked["patience"])
    with distributed.init_distributed():
        index = distributed.rank()
        told: dict[str, Any] = {"index": index, "size": distributed.size(), "read": []}
        try:
            for case in asked["cases"]:
                values = walk(case, index)[3]
                told["read"].append({name: str(v.flatten()[-1:]) for name, v in values.items()})
        except (ModwrightError, ZeroDivisionError) as error:
            told |= {"error": str(error), "kind": type(error).__name__}
            told["code"] = getattr(error, "exit_code", 1)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
