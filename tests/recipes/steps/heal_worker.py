"""``modwright`` as one of two processes, of which the second is half as fast by its clock."""

from __future__ import annotations

import os
import sys
from itertools import count

import modwright.training  # noqa: F401
from modwright.cli.entry import run_command

if __name__ == "__main__":
    ticks = count(0, 1 + int(os.environ["RANK"]))
    sys.modules["modwright.training.heal"].clock = lambda: next(ticks)  # type: ignore[attr-defined]
    sys.exit(run_command(sys.argv[1:]))
