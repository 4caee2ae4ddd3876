"""What checkpoints on disk hold, and pieces of recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor, equal

import modwright.recipes.run as running

__all__ = ["BLOCK", "DROP", "NOTHING", "config_of", "no_work", "same_weights", "snapshot"]
__all__ += ["weights"]

NOTHING = {"perplexity": None, "generate": None, "speed": None, "length": 32}
DROP = [{"method": "llm_drop", "target": "attention", "n": 1}]
BLOCK = [{"method": "llm_drop", "target": "block", "n": 1}]


def weights(place: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        found.update(load_file(file))
    assert found, f"{place} holds no weights"
    return found


def same_weights(one: Path, other: Path) -> bool:
    """The same names with the same bits."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and equal(a[n], b[n]) for n in a)


def config_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "config.json").read_text())
    return found


def snapshot(place: Path) -> dict[str, bytes]:
    """Every file below a directory, and an empty entry for every folder."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"(folder)"
        for path in sorted(place.rglob("*"))
    }


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, measuring anything fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(running, "measure_stage", refuse)
