"""Runs a recipe: open, measure, then plan, apply, verify and measure each step; save and report."""

from __future__ import annotations

import datetime
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from modwright.anatomy import Anatomy
from modwright.calibration import TokenWindows
from modwright.checkpoint import Checkpoint, check_finite, save
from modwright.checkpoint import open as open_checkpoint
from modwright.core import distributed
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.formatting import format_bytes
from modwright.core.progress import SILENT, Progress
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.edits.canonical import target_of
from modwright.edits.remodeled import is_plain
from modwright.edits.verify import Reopened, check_reopens
from modwright.recipes.facts import auto_class, environment, listed, opened_files, versions
from modwright.recipes.forecast import forecast, require_room
from modwright.recipes.load import resolved
from modwright.recipes.measure import Baseline, measure_stage
from modwright.recipes.quality import evaluation_digest
from modwright.recipes.run_directory import Inputs, RunDirectory, alone, file_stamps, step_key
from modwright.recipes.run_log import RunLog
from modwright.recipes.run_result import RunResult, is_complete, output_path, require_output
from modwright.recipes.schema import Recipe
from modwright.recipes.settings import torch_settings
from modwright.recipes.texts import step_windows
from modwright.report import Report, Stage, model_card, read_report, write_report

__all__ = ["RunResult", "run"]

Listener = Callable[[str], None]


def _unheard(message: str) -> None:
    pass


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    check: bool = True,
    progress: Progress = SILENT,
    log: Listener = _unheard,
) -> RunResult:
    """Runs a recipe and writes the checkpoint with its report.

    The state after each step is kept in ``<output>.work`` until the output stands; a run that was
    stopped goes on from there, and from the blocks whose statistics are there. ``<output>.log``
    says what happened when, and stays.

    Where ``torchrun`` or ``accelerate launch`` started several processes, every one calls this, and
    all carry out the steps: each walks its share of the calibration data, and all plan the same
    from the sums. The main one alone measures and writes.

    Args:
        recipe: what to do.
        output: where to; the recipe's own place by default.
        force: replace an output that stands there.
        check: reopen the saved checkpoint in a new process and compare it bit by bit.
        progress: told of every long phase.
        log: told in a sentence what is done next.

    Raises:
        ModwrightError: anything refused or failed; the output is not touched then.
    """
    place = output_path(recipe, output)
    with distributed.init_distributed():
        if not distributed.is_main():
            progress, log = SILENT, _unheard
        return _Run(recipe, place, force, check, progress, log).go()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        place: Path,
        force: bool,
        check: bool,
        progress: Progress,
        log: Listener,
    ) -> None:
        self.recipe, self.full, self.place = recipe, {**resolved(recipe), "output": ""}, place
        self.work, self.run_log = RunDirectory(place), RunLog(place)
        self.force, self.check = force or self.work.may_replace(self.full), check
        self.progress, self.log = self.run_log.progress(progress), self.run_log.listener(log)
        self.versions = versions()
        self.stages: list[Stage] = []  # the main process's
        self.windows: list[TokenWindows | None] = []
        self.inputs = Inputs()

    def key(self, steps: int) -> str:
        return step_key(self.full, steps, self.versions, self.inputs)

    def go(self) -> RunResult:
        if is_complete(self.place, self.full, self.force):
            distributed.main_process_only(self._say_it_stands)
            return RunResult(self.place, read_report(self.place), None, done_before=True)
        with alone(self.work, self.run_log), torch_settings(self.recipe):
            with distributed.fail_together():
                opened = self._open()
                dtype = opened.model.dtype
                model, done = self._resume(opened)
            for index in range(done, len(self.recipe.steps) + 1):
                with torch_settings(self.recipe):
                    model = self._step(index, opened, model)
            reopened = distributed.main_process_only(lambda: self._save(opened, model, dtype))
        log = self.run_log.path if distributed.is_main() else None
        return RunResult(self.place, read_report(self.place), reopened, log=log)

    def _say_it_stands(self) -> None:
        self.log(f"{self.place} holds the result of this recipe already; --force makes it again")
        self.work.clean_up(self.full)

    def _open(self) -> Checkpoint:
        """Refuses now what would fail after hours: no place for the output, no text, no memory."""
        self.run_log.write(f"modwright run into {self.place}, process {os.getpid()}")
        self.log(f"opening {self.recipe.model}")
        opened = open_checkpoint(self.recipe.model, dtype=self.recipe.dtype, progress=self.progress)
        for note in opened.notes:
            self.log(f"note: {note}")
        check_finite(opened.model)
        if distributed.is_main():
            require_output(opened, self.place, self.force)
        self.windows = step_windows(self.recipe, opened)
        if distributed.is_main():
            self._begin(opened)
        return opened

    def _begin(self, opened: Checkpoint) -> None:
        """From here on the run leaves traces: the log, and the work directory."""
        self.inputs = Inputs(
            model=file_stamps(opened.source.path),
            calibration=[None if w is None else w.recipe["sha256"] for w in self.windows],
            evaluation=evaluation_digest(opened, self.recipe.evaluate),
        )
        together = distributed.local_size()
        expected = forecast(self.recipe, opened.model, opened.name, processes=together)
        require_room(expected, self.place)
        self.run_log.write(
            f"forecast: {format_bytes(expected.peak)} of memory with the weights, "
            f"{format_bytes(expected.disk)} of disk"
        )
        self.run_log.begin(goes_on=self.work.root.is_dir())
        self.run_log.write(f"versions: {listed(self.versions)}")
        self.run_log.write(f"machine: {listed(environment(opened.model))}")
        if distributed.size() > 1:
            self.run_log.write(f"{distributed.size()} processes calibrate together")
        info = yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True).rstrip()
        self.run_log.write("recipe, resolved:\n" + info)
        self.work.acquire(self.full, force=self.force)

    def _resume(self, opened: Checkpoint) -> tuple[Any, int]:
        """Takes over finished steps; returns the model that they led to, and how many stages."""
        if distributed.is_main():
            self._read_stages()
        done = distributed.broadcast(len(self.stages))
        if done <= 1:
            return opened.model, done
        self.log(f"{done - 1} finished steps are taken over")
        return self.work.model(done - 1), done

    def _read_stages(self) -> None:
        for index in range(len(self.recipe.steps) + 1):
            stage = self.work.stage(index, self.key(index))
            if stage is None:
                break
            self.stages.append(stage)
        # Only the model of the last state is kept; a changed later step sends back to the source.
        while len(self.stages) > 1 and not self.work.holds_model(len(self.stages) - 1):
            self.stages.pop()

    def _step(self, index: int, opened: Checkpoint, model: Any) -> Any:
        """One step in every process; the main one measures what came of it and keeps it."""
        if index == 0:
            distributed.main_process_only(lambda: self._measure_source(opened, model))
            return model
        step = self.recipe.steps[index - 1]
        method = step.built
        self.log(f"step {index} of {len(self.recipe.steps)}: {method.title()}")
        start = time.monotonic()
        with distributed.fail_together():
            plan = self._plan(index, model, method)
            planned = time.monotonic()
            with self.progress.phase("apply and verify", 1) as task:
                applied = apply_plan(model, plan)
                task.advance()
        done = time.monotonic()
        seconds = {"plan": planned - start, "apply and verify": done - planned}

        def measure() -> None:
            info = {
                "method": step.method,
                "title": method.title(),
                "options": dict(plan.options),
                "seconds": seconds,
                "source_blocks": self._source_blocks(model, plan),
                "reasons": dict(plan.reasons),
                "notes": list(plan.notes),
                "accounting": _counts(applied),
                "plain": applied.plain,
            }
            self._measure(index, opened, applied.model, f"{index} {step.method}", info)
            self.work.keep(index, self.key(index), self.stages[-1], applied.model)
            self.work.forget_before(index)

        distributed.main_process_only(measure)
        return applied.model

    def _measure_source(self, opened: Checkpoint, model: Any) -> None:
        self.log("measuring the model as it came")
        info = {
            "title": "as it came",
            "plain": is_plain(model),
            "source_blocks": list(range(len(Anatomy.of(model).blocks))),
            "notes": list(opened.notes),
        }
        self._measure(0, opened, model, "before", info)
        self.work.keep(0, self.key(0), self.stages[0], None)

    def _measure(
        self, index: int, opened: Checkpoint, model: Any, name: str, info: dict[str, Any]
    ) -> None:
        stage = measure_stage(
            model,
            opened.tokenizer,
            self.recipe.evaluate,
            self.progress,
            Baseline(opened.model, self.stages[0].speed) if index else None,
            self.log,
            name=name,
            **info,
        )
        self.stages.append(stage)
        facts = {"parameters": stage.cost["parameters"], "perplexity": stage.perplexity}
        self.run_log.write(f"measured {stage.name}: {listed(facts)}")
        for note in stage.notes:
            self.run_log.write(f"note: {note}")

    def _plan(self, index: int, model: Any, method: Any) -> Plan:
        windows = self.windows[index - 1]
        directory = None
        if windows is not None:
            self.log(f"calibration: {windows.describe()}")
        if distributed.is_main():
            directory = self.work.statistics(index, self.key(index)).resolve()
        directory = distributed.broadcast(directory)
        plan: Plan = method.plan(
            Anatomy.of(model), windows, directory=directory, progress=self.progress
        )
        edits = [edit.to_dict() for edit in plan.edits]
        if any(others != edits for others in distributed.all_gather(edits)):
            raise VerificationError(
                f"{method.title()}: the processes planned differently from the same statistics; "
                "give them the same machine, packages and threads"
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
                **opened_files(opened.source),
                "auto_class": auto_class(model),
            },
            created=datetime.date.today().isoformat(),
            versions=self.versions,
            environment=environment(model),
            recipe=self.full,
            stages=self.stages,
            reproduce=f"modwright run recipe.yaml -o {shlex.quote(self.place.name)}",
        )

    def _save(self, opened: Checkpoint, model: Any, dtype: torch.dtype) -> Reopened | None:
        report = self._report(opened, model)
        self.log(f"writing {self.place}")
        seen: list[Reopened] = []

        if model.dtype != dtype:
            raise InvalidInputError(
                f"the weights came as {dtype} and would be written as {model.dtype}"
            )
        parts = "weights, new process, report" if self.check else "weights, report"
        with self.progress.phase(f"write ({parts})", parts.count(",") + 1) as task:

            def finish(folder: Path) -> None:
                task.advance()
                if self.check:
                    self.log("reopening it in a new process")
                    seen.append(check_reopens(model, folder))
                    task.advance()
                files = {
                    path.relative_to(folder).as_posix(): path.stat().st_size
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                }
                write_report(_with_files(report, files), folder)
                task.advance()

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
        self.work.remove()
        self.run_log.write("done")
        return seen[0] if seen else None


def _with_files(report: Report, files: dict[str, int]) -> Report:
    return Report.from_dict({**report.to_dict(), "files": files})


def _counts(applied: Applied) -> dict[str, int]:
    account = applied.tensor_diff
    return {name: len(getattr(account, name)) for name in ("kept", "changed", "added", "removed")}
