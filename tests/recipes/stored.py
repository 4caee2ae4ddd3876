"""What checkpoints on disk hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, equal

__all__ = ["config_of", "same_weights", "snapshot", "weights"]


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
