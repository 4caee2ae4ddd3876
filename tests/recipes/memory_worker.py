"""Runs one recipe in a process of its own and says how much memory it took; for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import peak_rss_bytes
from modwright.recipes.estimate import estimate_resources
from modwright.recipes.load import parse_recipe
from modwright.recipes.run import run


def held() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in the process's status")


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    # A run of a tiny model first: what libraries keep for themselves is there then.
    run(parse_recipe(asked["first"]), asked["out"] + "-first", check=False)
    recipe = parse_recipe(asked["recipe"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = held()
    run(recipe, asked["out"], check=False)
    most = peak_rss_bytes() - before
    opened = open_checkpoint(recipe.model, dtype=recipe.dtype)
    expected = estimate_resources(recipe, opened.model, opened.name).to_dict()
    print(json.dumps({"most": most, "estimate": expected}))


if __name__ == "__main__":
    main()
