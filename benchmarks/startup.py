"""How long it takes until modwright is there: medians of new processes.

    python benchmarks/startup.py --repeats 5

``import modwright`` should stay below 0.3 s and ``modwright --help`` below 0.5 s; both are printed
beside what a process costs that imports nothing, and beside torch and transformers, which are not
imported before they are needed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "nothing": ["-c", "pass"],
    "import modwright": ["-c", "import modwright"],
    "modwright --help": ["-m", "modwright", "--help"],
    "modwright papers --json": ["-m", "modwright", "papers", "--json"],
    "import torch": ["-c", "import torch"],
    "import torch, transformers": ["-c", "import torch; from transformers import PreTrainedModel"],
}


def seconds(arguments: list[str]) -> float:
    """Of one new process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5, help="new processes of each kind")
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for arguments in COMMANDS.values():
        seconds(arguments)  # files come into the disk cache
    for _ in range(repeats):  # in turns, so that drift of the machine hits all
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    width = max(map(len, COMMANDS))
    print(f"{'':{width}}  median s   least s   (median of {repeats})")
    for name, found in times.items():
        print(f"{name:{width}}  {statistics.median(found):8.3f}  {min(found):8.3f}")


if __name__ == "__main__":
    main()
