"""``modwright`` as one of several processes, with trouble on request; for the tests alone.

The trouble is told in the environment of this script: in which process, at which function of the
package, and what happens there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import modwright.calibration.layerwise as walking
import modwright.recipes.run as running
import modwright.surgery.llm_drop as planning
from modwright.cli.entry import run_command
from modwright.core import distributed
from modwright.core.errors import InvalidInputError

PLACES = {
    "measuring": (running, "measure_stage"),
    "opening": (running, "step_windows"),
    "walking": (walking, "record"),
    "planning": (planning, "most_similar"),
}


def make_trouble(place: str, kind: str) -> None:
    module, name = PLACES[place]

    def trouble(*args: Any, **kwargs: Any) -> Any:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "wait":
            time.sleep(3)
            return original(*args, **kwargs)
        raise InvalidInputError("trouble is asked for here")

    original = getattr(module, name)
    setattr(module, name, trouble)


if __name__ == "__main__":
    asked = json.loads(os.environ.get("SHARE_TROUBLE", "{}"))
    if asked and os.environ["RANK"] == asked["process"]:
        make_trouble(asked["place"], asked["kind"])
    assert distributed.PATIENCE.total_seconds() > 60
    sys.exit(run_command(sys.argv[1:]))
