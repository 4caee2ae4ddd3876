"""Runs a recipe: open, measure, then plan, apply, verify and measure each step; save and report."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint, check_finite, rehearse, require_memory, save
from modwright.checkpoint import open as open_checkpoint
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.edits.canonical import target_of
from modwright.edits.reopen import Reopened, check_reopens
from modwright.errors import CheckpointError, Refused
from modwright.progress import SILENT, Progress
from modwright.recipes.forecast import forecast
from modwright.recipes.load import resolved
from modwright.recipes.measure import calibration_windows, measure_stage, servable
from modwright.recipes.schema import Recipe
from modwright.recipes.work import WorkPlace, step_key
from modwright.report import Report, Stage, model_card, write_report
from modwright.surgery import make_method

__all__ = ["Outcome", "environment", "run", "versions"]

Listener = Callable[[str], None]


def _unheard(message: str) -> None:
    pass


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    output: Path
    report: Report
    reopened: Reopened | None
    done_before: bool = False


def versions() -> dict[str, str]:
    """The packages that decide about results."""
    names = ("modwright", "torch", "transformers", "safetensors", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def environment(model: Any) -> dict[str, Any]:
    """What the numbers of a report were measured on."""
    from modwright.checkpoint import peak_rss_bytes

    return {
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "memory": f"{peak_rss_bytes() / 1e9:.2f} GB at most",
    }


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    check: bool = True,
    progress: Progress = SILENT,
    say: Listener = _unheard,
) -> Outcome:
    """Runs a recipe and writes the checkpoint with its report.

    The state after each step is kept in ``<output>.work`` until the output stands; a run that was
    stopped goes on from there, and from the blocks whose statistics are there.

    Args:
        recipe: what to do.
        output: where to; the recipe's own place by default.
        force: replace an output that stands there.
        check: reopen the saved checkpoint in a new process and compare it bit by bit.
        progress: told of every long phase.
        say: told in a sentence what is done next.

    Raises:
        ModwrightError: anything refused or failed; the output is not touched then.
    """
    place = Path(output or recipe.output or "")
    if not str(output or recipe.output):
        raise Refused("no output: give `output:` in the recipe or -o on the command line")
    full = resolved(recipe)
    full["output"] = ""
    if place.is_dir() and any(place.iterdir()) and not force:
        if _is_result_of(place, full):
            say(f"{place} holds the result of this recipe already")
            return Outcome(place, _stored_report(place), None, done_before=True)
        raise CheckpointError(f"{place} is not empty; --force replaces it")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    return _Run(recipe, full, place, force, check, progress, say).go()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        full: dict[str, Any],
        place: Path,
        force: bool,
        check: bool,
        progress: Progress,
        say: Listener,
    ) -> None:
        self.recipe, self.full, self.place = recipe, full, place
        self.force, self.check, self.progress, self.say = force, check, progress, say
        self.work = WorkPlace(place)
        self.versions = versions()
        self.stages: list[Stage] = []

    def key(self, steps: int) -> str:
        return step_key(self.full, steps, self.versions)

    def go(self) -> Outcome:
        self.say(f"opening {self.recipe.model}")
        opened = open_checkpoint(self.recipe.model, dtype=self.recipe.dtype, progress=self.progress)
        check_finite(opened.model)
        self._prepare(opened)
        dtype = opened.model.dtype
        model = self._resume(opened)
        for index in range(len(self.stages), len(self.recipe.steps) + 1):
            model = self._step(index, opened, model)
        report = self._report(opened, model)
        reopened = self._save(opened, model, report, dtype)
        self.work.remove()
        return Outcome(self.place, report, reopened)

    def _prepare(self, opened: Checkpoint) -> None:
        """Refuses now what would fail after hours: no place for the output, too little memory."""
        rehearse(opened.model, self.place, source=opened.source, force=self.force)
        expected = forecast(self.recipe, opened.model, opened.name)
        require_memory(expected.peak - expected.weights, "this recipe, beside the weights,")

    def _resume(self, opened: Checkpoint) -> Any:
        """Takes over finished steps; returns the model that they led to."""
        for index in range(len(self.recipe.steps) + 1):
            stage = self.work.stage(index, self.key(index))
            if stage is None:
                break
            self.stages.append(stage)
        if len(self.stages) <= 1:
            return opened.model
        self.say(f"{len(self.stages) - 1} finished steps are taken over")
        return self.work.model(len(self.stages) - 1)

    def _step(self, index: int, opened: Checkpoint, model: Any) -> Any:
        if index == 0:
            self.say("measuring the model as it came")
            stage = measure_stage(
                model,
                opened.tokenizer,
                self.recipe.evaluate,
                self.progress,
                name="before",
                title="as it came",
                plain=True,
                servable=dict(servable(True)),
                source_blocks=list(range(len(Anatomy.of(model).blocks))),
            )
            self.stages.append(stage)
            self.work.keep(0, self.key(0), stage, None)
            return model
        step = self.recipe.steps[index - 1]
        method = make_method(step.method, step.options)
        self.say(f"step {index} of {len(self.recipe.steps)}: {method.title()}")
        start = time.monotonic()
        plan = self._plan(index, opened, model, method)
        planned = time.monotonic()
        applied = apply_plan(model, plan)
        done = time.monotonic()
        stage = measure_stage(
            applied.model,
            opened.tokenizer,
            self.recipe.evaluate,
            self.progress,
            name=f"{index} {step.method}",
            method=step.method,
            title=method.title(),
            options=dict(plan.options),
            seconds={"plan": planned - start, "apply and verify": done - planned},
            source_blocks=self._source_blocks(model, plan),
            reasons=dict(plan.reasons),
            notes=list(plan.notes),
            accounting=_counts(applied),
            plain=applied.plain,
            servable=dict(servable(applied.plain)),
        )
        self.stages.append(stage)
        self.work.keep(index, self.key(index), stage, applied.model)
        self.work.forget_before(index)
        return applied.model

    def _plan(self, index: int, opened: Checkpoint, model: Any, method: Any) -> Plan:
        step = self.recipe.steps[index - 1]
        windows = None
        if method.needs.calibration and method.wants_data():
            windows = calibration_windows(
                opened.tokenizer, step.calibration or self.recipe.calibration
            )
            self.say(f"calibration: {windows.describe()}")
        directory = self.work.statistics(index, self.key(index))
        plan: Plan = method.plan(
            Anatomy.of(model), windows, directory=directory, progress=self.progress
        )
        return plan

    def _source_blocks(self, model: Any, plan: Plan) -> list[int | None]:
        before = self.stages[-1].source_blocks
        return [before[i] for i in target_of(Anatomy.of(model), plan.edits).blocks]

    def _report(self, opened: Checkpoint, model: Any) -> Report:
        return Report(
            title=self.recipe.title or f"{opened.name}: {len(self.recipe.steps)} steps",
            model={
                "name": opened.name,
                "family": Anatomy.of(model).family.name,
                "source": opened.source.description,
            },
            created=datetime.date.today().isoformat(),
            versions=self.versions,
            environment=environment(model),
            recipe=self.full,
            stages=self.stages,
            reproduce=f"modwright run recipe.yaml -o {shlex.quote(self.place.name)}",
        )

    def _save(
        self, opened: Checkpoint, model: Any, report: Report, dtype: torch.dtype
    ) -> Reopened | None:
        self.say(f"writing {self.place}")
        seen: list[Reopened] = []

        def finish(folder: Path) -> None:
            if self.check:
                self.say("reopening it in a new process")
                seen.append(check_reopens(model, folder))
            files = {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            write_report(_with_files(report, files), folder)

        if model.dtype != dtype:
            raise Refused(f"the weights came as {dtype} and would be written as {model.dtype}")
        save(
            model,
            self.place,
            source=opened.source,
            tokenizer=opened.tokenizer,
            max_shard_size=self.recipe.max_shard_size,
            force=self.force,
            files={
                "README.md": model_card(report),
                "recipe.yaml": yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True),
            },
            check=finish,
        )
        return seen[0] if seen else None


def _with_files(report: Report, files: dict[str, int]) -> Report:
    return Report.from_json({**report.to_json(), "files": files})


def _counts(applied: Applied) -> dict[str, int]:
    account = applied.accounting
    return {name: len(getattr(account, name)) for name in ("kept", "changed", "added", "removed")}


def _is_result_of(place: Path, full: dict[str, Any]) -> bool:
    try:
        stored = yaml.safe_load((place / "recipe.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return False
    return bool(stored == full)


def _stored_report(place: Path) -> Report:
    import json

    return Report.from_json(json.loads((place / "report.json").read_text()))
