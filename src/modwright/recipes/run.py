"""Runs a recipe: open, measure, then plan, apply, verify and measure each step; save and report."""

from __future__ import annotations

import datetime
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint, check_finite, save
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import counted_text, format_bytes
from modwright.core.plugins import plugin_digests
from modwright.core.progress import SILENT, Progress
from modwright.edits.remodeled import is_plain
from modwright.edits.verify import Reopened, check_reopens
from modwright.recipes.classifying import learned_images
from modwright.recipes.composed import model_name, open_model
from modwright.recipes.estimate import estimate_resources, require_room
from modwright.recipes.load import resolved
from modwright.recipes.measure import measure_stage
from modwright.recipes.plans import step_digests, step_windows
from modwright.recipes.quality import (
    TEACHER,
    evaluation_digest,
    seen_text_notes,
    subject_of,
)
from modwright.recipes.run_directory import Inputs, file_stamps, step_key
from modwright.recipes.run_log import auto_class, environment, listed, opened_files, versions
from modwright.recipes.runner import Listener, Runner, require_output, torch_settings, unheard
from modwright.recipes.schema import EXPORT, METHOD, Recipe
from modwright.recipes.steps import StepContext
from modwright.recipes.steps.method import run_method
from modwright.report import Report, Stage, model_card, read_report, write_report
from modwright.report.columns import stage_numbers

__all__ = ["RunResult", "run"]


@dataclass(frozen=True)
class RunResult:
    """What a run left."""

    output: Path
    report: Report
    reopened: Reopened | None  # what the check in a new process saw, if it was asked for
    done_before: bool = False  # the result stood there already
    log: Path | None = None  # the file beside the output


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    check: bool = True,
    progress: Progress = SILENT,
    log: Listener = unheard,
) -> RunResult:
    """Runs a recipe and writes the checkpoint with its report.

    The state after each step is kept in ``<output>.work`` until the output stands; a run that was
    stopped goes on from there, and from the blocks whose statistics are there. ``<output>.log``
    says what happened when, and stays. Of several processes that a launcher started, each walks
    its share of the calibration data, all plan the same, and the main one measures and writes.

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
    with distributed.init_distributed():
        return _Run(recipe, resolved(recipe), output, force, progress, log).go(check)


class _Run(Runner):
    def go(self, check: bool) -> RunResult:
        if self.stands():
            return RunResult(self.place, read_report(self.place), None, done_before=True)
        self.progress = self.run_log.progress(self.progress)
        self.versions = versions()
        self.stages: list[Stage] = []  # the main process's
        self.exports = [step.built for step in self.recipe.steps if step.kind == EXPORT]
        self.measured = len(self.recipe.steps) - len(self.exports)  # steps that change the model
        with self.alone():
            with distributed.fail_together():
                opened = self._open()
                model, done = self._resume(opened)
            for index in range(done, self.measured + 1):
                with torch_settings(self.recipe):
                    model = self._step(index, opened, model)
            reopened = distributed.main_process_only(lambda: self._save(opened, model, check))
        log = self.run_log.path if distributed.is_main() else None
        return RunResult(self.place, read_report(self.place), reopened, log=log)

    def _open(self) -> Checkpoint:
        """Refuses now what would fail after hours: no place for the output, no text, no memory."""
        self.run_log.write(f"modwright run into {self.place}, process {os.getpid()}")
        self.log(f"opening {model_name(self.recipe.model)}")
        opened = open_model(self.recipe, self.progress)
        for note in opened.notes:
            self.log(f"note: {note}")
        check_finite(opened.model)
        if distributed.is_main():
            require_output(opened, self.place, self.force)
        self.images = learned_images(self.recipe, opened, self.log)
        self.windows = step_windows(self.recipe, opened)
        if distributed.is_main():
            self._check_and_begin(opened)
        return opened

    def _check_and_begin(self, opened: Checkpoint) -> None:
        self.inputs = Inputs(
            model=file_stamps(opened.source.path),
            calibration=step_digests(self.recipe, opened, self.windows),
            evaluation=evaluation_digest(opened, self.recipe.evaluate, self.images.preparation),
            plugins=plugin_digests(),
        )
        together = distributed.local_size()
        expected = estimate_resources(self.recipe, opened.model, opened.name, processes=together)
        require_room(expected, self.place)
        self.run_log.write(
            f"estimate: {format_bytes(expected.peak)} of memory with the weights, "
            f"{format_bytes(expected.disk)} of disk"
        )
        info = [
            f"versions: {listed(self.versions)}",
            f"machine: {listed(environment(opened.model))}",
        ]
        if distributed.size() > 1:
            info.append(f"{distributed.size()} processes calibrate together")
        self.begin(self.work.root.is_dir(), *info)

    def _key(self, steps: int) -> str:
        return step_key(self.full, steps, self.versions, self.inputs)

    def _resume(self, opened: Checkpoint) -> tuple[Any, int]:
        """Takes over finished steps; returns the model that they led to, and how many stages."""
        if distributed.is_main():
            for index in range(self.measured + 1):
                stage = self.work.stage(index, self._key(index))
                if stage is None:
                    break
                self.stages.append(stage)
            # Only the last state's model is kept; a changed later step sends back to the source.
            while len(self.stages) > 1 and not self.work.holds_model(len(self.stages) - 1):
                self.stages.pop()
        done = distributed.broadcast(len(self.stages))
        if done <= 1:
            return opened.model, done
        self.log(f"{done - 1} finished steps are taken over")
        return self.work.model(done - 1, self.recipe.device), done

    def _step(self, index: int, opened: Checkpoint, model: Any) -> Any:
        """One step in every process; the main one measures what came of it and keeps it."""
        if index == 0:
            self.log("measuring the baseline")
            info = {
                "name": "before",
                "title": "baseline",
                "plain": is_plain(model),
                "source_blocks": list(range(len(Anatomy.of(model).blocks))),
                "notes": [*opened.notes, *seen_text_notes(self.recipe)],
            }
            distributed.main_process_only(lambda: self._measure(0, opened, model, info))
            return model
        step = self.recipe.steps[index - 1]
        self.log(f"step {index} of {len(self.recipe.steps)}: {step.built.title()}")
        directory = Path()  # the main process knows it
        if distributed.is_main():
            directory = self.work.statistics(index, self._key(index)).resolve()
        context = StepContext(
            opened,
            model,
            distributed.broadcast(directory),
            self.windows[index - 1],
            self.recipe.seed,
            self.stages[-1].source_blocks if distributed.is_main() else None,
            self.progress,
            self.log,
        )
        if step.kind == METHOD:
            with distributed.fail_together():
                outcome = run_method(step.built, context)
        else:
            outcome = step.built.run(context)
        names = {"name": f"{index} {step.method}", "method": step.method}
        info = {**names, "title": step.built.title(), **outcome.info}
        distributed.main_process_only(lambda: self._measure(index, opened, outcome.model, info))
        return outcome.model

    def _measure(self, index: int, opened: Checkpoint, model: Any, info: dict[str, Any]) -> None:
        """Measures a state and keeps it."""
        baseline = subject_of(opened, preparation=self.images.preparation)
        subject = replace(baseline, model=model)
        if index:
            known = replace(baseline, name=TEACHER, found=self.stages[0].measured)
            subject = replace(subject, name="the result", reference=known)
        stage = measure_stage(subject, self.recipe.evaluate, self.progress, self.log, **info)
        self.stages.append(stage)
        facts = {"parameters": stage.cost["parameters"], **stage_numbers(stage)}
        self.run_log.write(f"measured {stage.name}: {listed(facts)}")
        for note in stage.notes:
            self.run_log.write(f"note: {note}")
        self.work.keep(index, self._key(index), stage, model if index else None)
        self.work.forget_before(index)

    def _report(self, opened: Checkpoint, model: Any) -> Report:
        steps = counted_text(len(self.recipe.steps), "step")
        return Report(
            title=self.recipe.title or f"{opened.name}: {steps}",
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

    def _save(self, opened: Checkpoint, model: Any, check: bool) -> Reopened | None:
        report = self._report(opened, model)
        self.log(f"writing {self.place}")
        if model.dtype != (dtype := opened.model.dtype):
            raise InvalidInputError(
                f"the weights came as {dtype} and would be written as {model.dtype}"
            )
        model.to("cpu")  # where the new process compares
        seen: list[Reopened] = []
        parts = "weights, new process, report" if check else "weights, report"
        with self.progress.phase(f"write ({parts})", parts.count(",") + 1) as task:

            def finish(folder: Path) -> None:
                task.advance()
                result = replace(opened, model=model)
                vars(result)["tokenizer"] = opened.tokenizer  # also one that was made
                for target in self.exports:
                    self.log(f"{target.title()}: {target.write(result, folder)}")
                if check:
                    self.log("reopening it in a new process")
                    seen.append(check_reopens(model, folder))
                    task.advance()
                files = {
                    path.relative_to(folder).as_posix(): path.stat().st_size
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                }
                write_report(replace(report, files=files), folder)
                task.advance()

            save(
                model,
                self.place,
                source=opened.source,
                tokenizer=opened.tokenizer,
                max_shard_size=self.recipe.max_shard_size,
                force=self.force,
                files={
                    **self.images.files,
                    "README.md": model_card(report),
                    "recipe.yaml": self.text,
                },
                check=finish,
            )
        self.end()
        return seen[0] if seen else None
