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
from modwright.calibration.processes import Processes, joined
from modwright.checkpoint import Checkpoint, check_finite, save
from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint.wording import format_bytes
from modwright.core.errors import Refused
from modwright.core.progress import SILENT, Progress
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.edits.canonical import target_of
from modwright.edits.remodelled import is_plain
from modwright.edits.reopen import Reopened, check_reopens
from modwright.recipes.facts import auto_class, environment, listed, versions
from modwright.recipes.forecast import forecast, require_room
from modwright.recipes.helping import Prepare, StepBegins, help_run
from modwright.recipes.journal import Journal
from modwright.recipes.load import resolved
from modwright.recipes.measure import Baseline, measure_stage
from modwright.recipes.outcome import Outcome, output_place, require_place, stands_already
from modwright.recipes.quality import evaluation_digest
from modwright.recipes.schema import Recipe
from modwright.recipes.settings import torch_as_asked
from modwright.recipes.texts import step_windows
from modwright.recipes.work import Inputs, WorkPlace, file_stamps, step_key
from modwright.report import Report, Stage, model_card, read_report, write_report
from modwright.surgery import make_method

__all__ = ["Outcome", "run"]

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
    say: Listener = _unheard,
) -> Outcome:
    """Runs a recipe and writes the checkpoint with its report.

    The state after each step is kept in ``<output>.work`` until the output stands; a run that was
    stopped goes on from there, and from the blocks whose statistics are there. ``<output>.log``
    says what happened when, and stays.

    Where ``torchrun`` or ``accelerate launch`` started several processes, every one calls this; the
    others walk their share of the calibration data and do nothing else.

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
    place = output_place(recipe, output)
    with joined() as team:
        if not team.is_main:
            help_run(recipe, place, team)
            return Outcome(place, read_report(place), None, leading=False)
        with team.leading():
            return _lead(recipe, place, team, force, check, progress, say)


def _lead(
    recipe: Recipe,
    place: Path,
    team: Processes,
    force: bool,
    check: bool,
    progress: Progress,
    say: Listener,
) -> Outcome:
    full = resolved(recipe)
    full["output"] = ""
    work, journal = WorkPlace(place), Journal(place)
    if stands_already(place, full, force):
        say(f"{place} holds the result of this recipe already; --force makes it again")
        work.remove_leftovers(full)
        return Outcome(place, read_report(place), None, done_before=True)
    with work.alone(), journal.open(), torch_as_asked(recipe):
        shown, told = journal.progress(progress), journal.listener(say)
        return _Run(recipe, full, place, work, journal, team, force, check, shown, told).go()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        full: dict[str, Any],
        place: Path,
        work: WorkPlace,
        journal: Journal,
        team: Processes,
        force: bool,
        check: bool,
        progress: Progress,
        say: Listener,
    ) -> None:
        self.recipe, self.full, self.place, self.work = recipe, full, place, work
        self.journal, self.team = journal, team
        self.force, self.check, self.progress, self.say = force, check, progress, say
        self.versions = versions()
        self.stages: list[Stage] = []
        self.windows: list[TokenWindows | None] = []
        self.inputs = Inputs()

    def key(self, steps: int) -> str:
        return step_key(self.full, steps, self.versions, self.inputs)

    def go(self) -> Outcome:
        self.team.tell(Prepare())
        with self.team.same_fate():
            self.journal.write(f"modwright run into {self.place}, process {os.getpid()}")
            self.say(f"opening {self.recipe.model}")
            opened = open_checkpoint(
                self.recipe.model, dtype=self.recipe.dtype, progress=self.progress
            )
            check_finite(opened.model)
            self._prepare(opened)
        self._begin(opened)
        dtype = opened.model.dtype
        model = self._resume(opened)
        for index in range(len(self.stages), len(self.recipe.steps) + 1):
            with torch_as_asked(self.recipe):
                model = self._step(index, opened, model)
        report = self._report(opened, model)
        reopened = self._save(opened, model, report, dtype)
        self.work.remove()
        self.journal.write("done")
        return Outcome(self.place, report, reopened, log=self.journal.path)

    def _begin(self, opened: Checkpoint) -> None:
        """From here on the run leaves traces: the log, and the work directory."""
        self.journal.begin(goes_on=self.work.root.is_dir())
        self.journal.write(f"versions: {listed(self.versions)}")
        self.journal.write(f"machine: {listed(environment(opened.model))}")
        if self.team.size > 1:
            self.journal.write(f"{self.team.size} processes calibrate together")
        told = yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True).rstrip()
        self.journal.write("recipe, resolved:\n" + told)
        self.work.claim(self.full)

    def _prepare(self, opened: Checkpoint) -> None:
        """Refuses now what would fail after hours: no place for the output, no text, no memory."""
        source = opened.source.path
        require_place(opened, self.place, self.force)
        self.windows = step_windows(self.recipe, opened)
        self.inputs = Inputs(
            model=file_stamps(source),
            calibration=[None if w is None else w.recipe["sha256"] for w in self.windows],
            evaluation=evaluation_digest(opened, self.recipe.evaluate),
        )
        expected = forecast(self.recipe, opened.model, opened.name, processes=self.team.local_size)
        require_room(expected, self.place)
        self.journal.write(
            f"forecast: {format_bytes(expected.peak)} of memory with the weights, "
            f"{format_bytes(expected.disk)} of disk"
        )

    def _resume(self, opened: Checkpoint) -> Any:
        """Takes over finished steps; returns the model that they led to."""
        for index in range(len(self.recipe.steps) + 1):
            stage = self.work.stage(index, self.key(index))
            if stage is None:
                break
            self.stages.append(stage)
        # Only the model of the last state is kept; a changed later step sends back to the source.
        while len(self.stages) > 1 and not self.work.holds_model(len(self.stages) - 1):
            self.stages.pop()
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
                plain=is_plain(model),
                source_blocks=list(range(len(Anatomy.of(model).blocks))),
            )
            self._measured(stage)
            self.work.keep(0, self.key(0), stage, None)
            return model
        step = self.recipe.steps[index - 1]
        method = make_method(step.method, step.options)
        self.say(f"step {index} of {len(self.recipe.steps)}: {method.title()}")
        start = time.monotonic()
        plan = self._plan(index, model, method)
        planned = time.monotonic()
        with self.progress.phase("apply and verify", 1) as task:
            applied = apply_plan(model, plan)
            task.advance()
        done = time.monotonic()
        stage = measure_stage(
            applied.model,
            opened.tokenizer,
            self.recipe.evaluate,
            self.progress,
            Baseline(opened.model, self.stages[0].speed),
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
        )
        self._measured(stage)
        self.work.keep(index, self.key(index), stage, applied.model)
        self.work.forget_before(index)
        return applied.model

    def _measured(self, stage: Stage) -> None:
        self.stages.append(stage)
        facts = {"parameters": stage.cost["parameters"], "perplexity": stage.perplexity}
        self.journal.write(f"measured {stage.name}: {listed(facts)}")
        for note in stage.notes:
            self.journal.write(f"note: {note}")

    def _plan(self, index: int, model: Any, method: Any) -> Plan:
        windows = self.windows[index - 1]
        directory = self.work.statistics(index, self.key(index))

        def plan() -> Plan:
            made: Plan = method.plan(
                Anatomy.of(model), windows, directory=directory, progress=self.progress
            )
            return made

        if windows is None:
            return plan()
        self.say(f"calibration: {windows.describe()}")
        self.team.tell(StepBegins(index, index - 1, directory.resolve()))
        made = self.team.decide(plan)
        assert made is not None, "the main process decides"
        return made

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
                "auto_class": auto_class(model),
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

        if model.dtype != dtype:
            raise Refused(f"the weights came as {dtype} and would be written as {model.dtype}")
        parts = "weights, new process, report" if self.check else "weights, report"
        with self.progress.phase(f"write ({parts})", parts.count(",") + 1) as task:

            def finish(folder: Path) -> None:
                task.advance()
                if self.check:
                    self.say("reopening it in a new process")
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
        return seen[0] if seen else None


def _with_files(report: Report, files: dict[str, int]) -> Report:
    return Report.from_json({**report.to_json(), "files": files})


def _counts(applied: Applied) -> dict[str, int]:
    account = applied.accounting
    return {name: len(getattr(account, name)) for name in ("kept", "changed", "added", "removed")}
