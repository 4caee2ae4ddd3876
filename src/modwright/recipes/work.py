"""Where a run keeps its finished steps, so that none is done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import save
from modwright.report import Stage

__all__ = ["WorkPlace", "step_key"]


def step_key(recipe: dict[str, Any], steps: int, versions: dict[str, str]) -> str:
    """Names the state after ``steps`` steps: the same key means the same result."""
    told = {
        "model": recipe["model"],
        "dtype": recipe["dtype"],
        "seed": recipe["seed"],
        "threads": recipe["threads"],
        "steps": recipe["steps"][:steps],
        "evaluate": recipe["evaluate"],
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class WorkPlace:
    """``<output>.work``: one directory per finished step, with its model and its measurements."""

    def __init__(self, output: Path) -> None:
        self.root = output.with_name(output.name + ".work")

    def step(self, index: int) -> Path:
        return self.root / f"step-{index}"

    def stage(self, index: int, key: str) -> Stage | None:
        """The stored measurements of a state, if they belong to this run."""
        try:
            stored = json.loads((self.step(index) / "stage.json").read_text())
        except (OSError, ValueError):
            return None
        return Stage.from_json(stored["stage"]) if stored["key"] == key else None

    def model(self, index: int) -> Any:
        """The stored model of a state."""
        return open_checkpoint(self.step(index) / "model").model

    def keep(self, index: int, key: str, stage: Stage, model: Any | None) -> None:
        """Stores a state: the model first, so that measurements mean that it is whole."""
        place = self.step(index)
        place.mkdir(parents=True, exist_ok=True)
        if model is not None:
            save(model, place / "model", force=True)
        partial = place / "stage.partial"
        partial.write_text(json.dumps({"key": key, "stage": stage.to_json()}))
        partial.replace(place / "stage.json")

    def statistics(self, index: int, key: str) -> Path:
        """Where the statistics of a step under way are kept."""
        return self.step(index) / f"statistics-{key[:12]}"

    def forget_before(self, index: int) -> None:
        """Models of earlier states and statistics of finished steps are not needed any more."""
        for i in range(index + 1):
            if i < index:
                shutil.rmtree(self.step(i) / "model", ignore_errors=True)
            for leftover in self.step(i).glob("statistics-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
