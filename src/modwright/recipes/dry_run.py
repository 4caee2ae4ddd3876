"""A dry run: opens, reads, estimates, allocates what is largest, rehearses the save. No files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from modwright.anatomy import Anatomy, Block
from modwright.calibration import CalibrationData, Collector
from modwright.calibration.layerwise import compute_device, measure_block
from modwright.calibration.recording import ModelInput, on_device, record
from modwright.checkpoint import check_finite, peak_rss_bytes
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.recipes.classifying import learned_images
from modwright.recipes.composed import model_name, open_model
from modwright.recipes.estimate import ResourceEstimate, estimate_resources, require_room
from modwright.recipes.load import resolved
from modwright.recipes.plans import step_digests, step_windows
from modwright.recipes.quality import evaluation_digest
from modwright.recipes.run_directory import RunDirectory
from modwright.recipes.runner import is_complete, output_path, require_output, torch_settings
from modwright.recipes.schema import Recipe

__all__ = ["BlockDryRun", "DryRun", "StepDryRun", "dry_run", "dry_run_block"]


@dataclass(frozen=True)
class BlockDryRun:
    """What was allocated and run; sizes are bytes."""

    block: int  # index of the largest block
    weights: int  # its parameters
    statistics: int  # what was added up in it
    batch: tuple[int, ...]  # shape of the largest batch, rows and tokens
    device: str  # where it ran
    seconds: float  # for that batch in that block
    layer_seconds: float  # for all batches in all blocks, reckoned from it


@dataclass(frozen=True)
class StepDryRun:
    """What was tried of one step."""

    title: str  # the method with its options
    calibration: BlockDryRun | None  # None where it looks at no data
    memory_estimate: int  # bytes that were allocated in place of the plan's work and values


@dataclass(frozen=True)
class DryRun:
    """What a dry run did and foresees; sizes are bytes."""

    output: Path  # where the result would go
    estimate: ResourceEstimate
    steps: tuple[StepDryRun, ...]  # all on the baseline
    free_disk: int  # where the output goes
    peak: int  # the most memory that the process held, Python included

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "output": str(self.output),
            "estimate": self.estimate.to_dict(),
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
) -> DryRun | None:
    """Tries what a run would need, before the hours that it takes. Nothing is written.

    For every step that calibrates, the largest block runs on one batch with its statistics, and
    what planning needs is allocated. None where the result stands, and outside the main process.

    Raises:
        ModwrightError: what a run would refuse.
    """
    place = output_path(recipe, output)

    def rehearse() -> DryRun:
        log(f"opening {model_name(recipe.model)}")
        opened = open_model(recipe, progress)
        check_finite(opened.model)
        log(f"rehearsing the save to {place}")
        require_output(opened, place, force)
        images = learned_images(recipe, opened, log)
        windows = step_windows(recipe, opened)
        step_digests(recipe, opened, windows)
        evaluation_digest(opened, recipe.evaluate, images.preparation)
        together = distributed.local_size()
        expected = estimate_resources(recipe, opened.model, opened.name, processes=together)
        free_disk = require_room(expected, place)
        steps = []
        with progress.phase("rehearse", len(windows)) as task:
            for step, data in zip(recipe.steps, windows):
                steps.append(_step(step.built, opened.anatomy, data))
                task.advance()
        return DryRun(place, expected, tuple(steps), free_disk, peak_rss_bytes())

    def alone() -> DryRun:
        with RunDirectory(place).alone(), torch_settings(recipe):
            return rehearse()

    with distributed.init_distributed():
        if not is_complete(place, {**resolved(recipe), "output": ""}, force):
            return distributed.main_process_only(alone)
        if distributed.is_main():
            log(f"{place} holds the result of this recipe already; there is nothing to do")
        return None


def _step(method: Any, anatomy: Anatomy, data: CalibrationData | None) -> StepDryRun:
    tried = None if data is None else dry_run_block(anatomy, data, method.collectors())
    needed = sum(method.memory_estimate(anatomy)) if hasattr(method, "memory_estimate") else 0
    # Ones, not zeros: memory that nobody has written to is not taken.
    room = torch.ones(needed, dtype=torch.uint8)
    return StepDryRun(method.title(), tried, room.nbytes)


@torch.no_grad()
def dry_run_block(
    anatomy: Anatomy, windows: CalibrationData, collectors: Sequence[Collector]
) -> BlockDryRun:
    """Runs the largest block on the largest batch with its statistics, as a walk would; no files.

    Raises:
        InvalidInputError: no data, activations that are not finite, or memory that cannot be had.

    Example:
        >>> import modwright
        >>> from modwright.calibration import SecondMoments, calibration_of
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> dry_run_block(anatomy, calibration_of([[5, 6, 7]]), [SecondMoments()]).batch
        (1, 3)
    """
    batches: list[ModelInput] = list(windows)
    if not batches:
        raise InvalidInputError("there is no calibration data")
    batch = max(batches, key=lambda one: sum(t.numel() for t in one.tensors().values()))
    try:
        with eval_mode(anatomy.model):
            return _rehearse(anatomy, batch, len(batches), collectors)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        raise InvalidInputError(
            f"the largest block does not fit into memory: {str(error).splitlines()[0]}; use a "
            "smaller calibration.batch_size or a smaller dtype"
        ) from error


def _rehearse(
    anatomy: Anatomy, batch: ModelInput, batches: int, collectors: Sequence[Collector]
) -> BlockDryRun:
    def needs(block: Block) -> tuple[int, int]:
        return sum(c.bytes(block) for c in collectors), block.num_parameters

    device = compute_device(anatomy)
    block = max(anatomy.blocks, key=needs)
    (entry,), calls = record(anatomy, [batch])
    history = max((collector.history for collector in collectors), default=1)
    with on_device(block.module, device):
        for _ in range(2):  # the second time nothing is new to the machine
            accumulators: list[Any] = []
            start = time.monotonic()
            accumulators = measure_block(
                block,
                [batch],
                calls[block.index],
                [[entry]] * history,
                [entry],
                collectors,
                device,
                SILENT,
            )
            seconds = time.monotonic() - start
    share = -(-batches // distributed.size())
    return BlockDryRun(
        block=block.index,
        weights=sum(p.nbytes for p in block.module.parameters()),
        statistics=sum(t.nbytes for each in accumulators for t in each.sums.values()),
        batch=tuple(next(iter(batch.tensors().values())).shape),
        device=str(device),
        seconds=seconds,
        layer_seconds=seconds * share * len(anatomy.blocks),
    )
