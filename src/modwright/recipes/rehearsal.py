"""A dry run: opens, reads, forecasts, allocates what is largest, rehearses the save. No files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.calibration.rehearsal import BlockRehearsal, rehearse_block
from modwright.checkpoint import Checkpoint, check_finite, peak_rss_bytes
from modwright.checkpoint import open as open_checkpoint
from modwright.core import distributed
from modwright.core.progress import SILENT, Progress
from modwright.recipes.forecast import Forecast, forecast, require_room
from modwright.recipes.load import resolved
from modwright.recipes.quality import evaluation_digest
from modwright.recipes.run_directory import RunDirectory
from modwright.recipes.run_result import is_complete, output_path, require_output
from modwright.recipes.schema import Recipe
from modwright.recipes.settings import torch_settings
from modwright.recipes.texts import step_windows

__all__ = ["Rehearsal", "StepRehearsal", "dry_run"]


@dataclass(frozen=True)
class StepRehearsal:
    """One step.

    Attributes:
        title: the method with its options.
        calibration: what was run of it; None where it looks at no data.
        memory_estimate: what was allocated in place of the plan's work and values.
    """

    title: str
    calibration: BlockRehearsal | None
    memory_estimate: int


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run did and foresees.

    Attributes:
        output: where the result would go.
        forecast: parameters, memory and disk of every step.
        steps: what was tried of every step, all on the model as it came.
        free_disk: bytes that are free where the output goes.
        peak: the most memory that the process held, Python included.
    """

    output: Path
    forecast: Forecast
    steps: tuple[StepRehearsal, ...]
    free_disk: int
    peak: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "output": str(self.output),
            "forecast": self.forecast.to_dict(),
            "steps": [asdict(step) for step in self.steps],
            "free_disk_bytes": self.free_disk,
            "peak_rss_bytes": self.peak,
        }


def dry_run(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    log: Callable[[str], None] = lambda message: None,
) -> Rehearsal | None:
    """Tries what a run would need, before the hours that it takes. Nothing is written.

    Every refusal of a run before its work comes here, too. For every step that calibrates, the
    largest block runs on one batch with its statistics, and what planning needs is allocated.

    Returns:
        What was done; None where the result stands already, and in a process that is not the main
        one.

    Raises:
        ModwrightError: what a run would refuse.
    """
    place = output_path(recipe, output)

    def rehearse() -> Rehearsal:
        with RunDirectory(place).alone(), torch_settings(recipe):
            return _rehearse(recipe, place, force, progress, log)

    with distributed.init_distributed():
        if not is_complete(place, {**resolved(recipe), "output": ""}, force):
            return distributed.main_process_only(rehearse)
        if distributed.is_main():
            log(f"{place} holds the result of this recipe already; there is nothing to do")
        return None


def _rehearse(
    recipe: Recipe,
    place: Path,
    force: bool,
    progress: Progress,
    log: Callable[[str], None],
) -> Rehearsal:
    log(f"opening {recipe.model}")
    opened = open_checkpoint(recipe.model, dtype=recipe.dtype, progress=progress)
    check_finite(opened.model)
    log(f"rehearsing the save to {place}")
    require_output(opened, place, force)
    windows = step_windows(recipe, opened)
    evaluation_digest(opened, recipe.evaluate)
    together = distributed.local_size()
    expected = forecast(recipe, opened.model, opened.name, processes=together)
    free_disk = require_room(expected, place)
    steps = []
    with progress.phase("rehearse", len(recipe.steps)) as task:
        for index, data in enumerate(windows):
            steps.append(_step(recipe, index, opened, data))
            task.advance()
    return Rehearsal(place, expected, tuple(steps), free_disk, peak_rss_bytes())


def _step(recipe: Recipe, index: int, opened: Checkpoint, data: Any) -> StepRehearsal:
    method = recipe.steps[index].built
    anatomy = Anatomy.of(opened.model)
    tried = None if data is None else rehearse_block(anatomy, data, method.collectors())
    info = getattr(method, "memory_estimate", None)
    needed = 0 if info is None else sum(info(anatomy))
    # Ones, not zeros: memory that nobody has written to is not taken.
    room = torch.ones(needed, dtype=torch.uint8)
    return StepRehearsal(method.title(), tried, room.nbytes)
