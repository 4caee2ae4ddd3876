"""``modwright`` as one of several processes that notes how much of a sharded model it holds, and is
killed on request; for the tests alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from modwright.cli.entry import run_command
from modwright.training.sharding import WholeAfterwards
from modwright.training.trainer import ObjectiveTrainer

begin, step = WholeAfterwards.on_train_begin, ObjectiveTrainer.training_step
KILLED_AT = int(os.environ.get("KILLED_AT", "0"))
calls = 0


def noted(self: Any, *args: Any, **kwargs: Any) -> None:
    begin(self, *args, **kwargs)
    shards = [p for p in self.model.parameters() if isinstance(p, DTensor)]
    held = sum(p.to_local().numel() for p in shards)
    Path(f"held-{os.environ['RANK']}").write_text(f"{held} {sum(p.numel() for p in shards)}")


def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
    global calls
    calls += 1
    if calls == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)


if __name__ == "__main__":
    WholeAfterwards.on_train_begin = noted  # type: ignore[method-assign]
    ObjectiveTrainer.training_step = counted  # type: ignore[method-assign]
    sys.exit(run_command(sys.argv[1:]))
