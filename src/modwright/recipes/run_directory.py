"""Where a run keeps its finished steps, so that none is done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import save
from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.files import alone_at, read_json, tidy_after_killed, write_file, writing
from modwright.report import Stage

__all__ = ["Inputs", "RunDirectory", "file_stamps", "step_key"]

_REPLACES = "replaces.json"


@dataclass(frozen=True)
class Inputs:
    """What a recipe reads, beyond the names that it gives: files change under the same name."""

    model: Sequence[Sequence[Any]]  # stamps of its files
    calibration: Sequence[str | None]  # digest of the tokens of each step
    evaluation: str | None  # digest of what is measured on
    plugins: Sequence[str] = ()  # digest of the source of each


def file_stamps(place: Path | None) -> list[list[Any]]:
    """Name, size and time of change of a file, or of every file right in a directory."""
    if place is None:
        return []
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
    stats = [(file.name, file.stat()) for file in files if not file.name.startswith(".")]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def step_key(recipe: dict[str, Any], steps: int, versions: dict[str, str], inputs: Inputs) -> str:
    """Names the state after ``steps`` steps: the same key means the same result."""
    info = {
        **{
            name: recipe[name]
            for name in ("model", "device", "dtype", "seed", "threads", "evaluate")
        },
        "inputs": asdict(replace(inputs, calibration=list(inputs.calibration[:steps]))),
        "steps": recipe["steps"][:steps],
        "versions": versions,
    }
    return sha256_of(info)


def _stamp(place: Path) -> list[int] | None:
    """Tells a directory from any other, and from itself after a change; None where none is."""
    try:
        found = place.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_mtime_ns]


class RunDirectory:
    """``<output>.work``: one directory per finished step, with its model and its measurements."""

    def __init__(self, output: Path) -> None:
        self.output = output
        place = output.resolve()
        self.root = place.with_name(place.name + ".work")

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other runs out for as long as the block runs; refused where one is at work."""
        return alone_at(self.root, str(self.output))

    def acquire(self, recipe: dict[str, Any], *, force: bool = False) -> None:
        """Notes which recipe the work is for, and with ``force`` which output it may replace."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        write_file(self.root / "recipe.json", json.dumps(recipe), kept_in=self.root)
        replaced = json.dumps(_stamp(self.output) if force else None)
        write_file(self.root / _REPLACES, replaced, kept_in=self.root)

    def belongs_to(self, recipe: dict[str, Any]) -> bool:
        """Whether the work that stands there was begun for this recipe."""
        return bool(read_json(self.root / "recipe.json") == json.loads(json.dumps(recipe)))

    def may_replace(self, recipe: dict[str, Any]) -> bool:
        """Whether a killed run of this recipe was told to replace just what stands there."""
        stamp = _stamp(self.output)
        known = stamp is not None and stamp == read_json(self.root / _REPLACES)
        return known and self.belongs_to(recipe)

    def clean_up(self, recipe: dict[str, Any]) -> None:
        """Removes what a run left that was killed when its output stood already."""
        tidy_after_killed(self.output.resolve())
        if self.belongs_to(recipe):
            with suppress(CheckpointError), self.alone():
                self.remove()

    def step(self, index: int) -> Path:
        return self.root / f"step-{index}"

    def stage(self, index: int, key: str) -> Stage | None:
        """The stored measurements of a state, if they belong to this run."""
        try:
            stored = json.loads((self.step(index) / "stage.json").read_text())
            return Stage.from_dict(stored["stage"]) if stored["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, InvalidInputError):
            return None

    def holds_model(self, index: int) -> bool:
        """Whether the model of a state is there; that of an earlier state is not kept."""
        return (self.step(index) / "model").is_dir()

    def model(self, index: int, device: str | None = None) -> Any:
        """The stored model of a state."""
        return open_checkpoint(self.step(index) / "model", device=device).model

    def keep(self, index: int, key: str, stage: Stage, model: Any | None) -> None:
        """Stores a state: the model first, so that measurements mean that it is whole."""
        place = self.step(index)
        with writing(self.root):
            place.mkdir(parents=True, exist_ok=True)
        if model is not None:
            save(model, place / "model", force=True)
        stored = json.dumps({"key": key, "stage": stage.to_dict()})
        write_file(place / "stage.json", stored, kept_in=self.root)

    def statistics(self, index: int, key: str) -> Path:
        """Where the statistics of a step under way are kept."""
        return self.step(index) / f"statistics-{key[:12]}"

    def forget_before(self, index: int) -> None:
        """Models of earlier states and statistics of finished steps are not needed any more."""
        models = [self.step(i) / "model" for i in range(index)]
        statistics = [p for i in range(index + 1) for p in self.step(i).glob("statistics-*")]
        for leftover in models + statistics:
            shutil.rmtree(leftover, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
