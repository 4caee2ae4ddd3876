"""Runs a study: every cell into its folder, in processes, then the table of what they stored."""

from __future__ import annotations

import datetime
import filecmp
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from modwright.core import distributed
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError, ProcessFailed
from modwright.core.files import alone_at, whole_directory, write_file
from modwright.core.formatting import counted_text
from modwright.core.progress import SILENT, Progress
from modwright.core.workers import work_in_processes
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.run import run
from modwright.recipes.run_log import versions
from modwright.recipes.runner import Listener, is_complete, unheard
from modwright.recipes.study import Cell, Study
from modwright.report import Report, read_report
from modwright.report.comparison import Comparison, Measured, Row
from modwright.report.comparison_pages import write_comparison

__all__ = ["StudyResult", "run_cell", "run_study"]

_OWN = "study.yaml"  # by which the folder of a study is known
_KEPT = "best"


@dataclass(frozen=True)
class StudyResult:
    """What a study left.

    Attributes:
        output: its folder: the report, ``study.yaml`` and ``cells/ARM/seed-N``.
        comparison: the table.
        ran: how many cells were run now; the others stood already.
        kept: the folder with a copy of the best cell, where the study keeps one.
    """

    output: Path
    comparison: Comparison
    ran: int
    kept: Path | None = None


def run_study(
    study: Study,
    output: str | Path,
    *,
    force: bool = False,
    workers: int | None = None,
    progress: Progress = SILENT,
    log: Listener = unheard,
) -> StudyResult:
    """Runs every cell that does not stand yet, and writes one table and one figure.

    A study that was stopped goes on when it is run again: finished cells are read, one that was
    under way goes on from its finished steps. Cells of arms and seeds that were added since are
    run beside those that stand. Every cell computes with one thread, unless its recipe says
    otherwise, and arms of one seed see the same data in the same order.

    Args:
        study: of :func:`modwright.recipes.study.load_study`.
        output: the folder to write.
        force: begin anew where a study stands.
        workers: processes in place of those that the study says.
        progress: told of the cells.
        log: told in a sentence what is done next.

    Raises:
        ModwrightError: something else stands there, or a cell was refused or failed.
    """
    if distributed.launched() > 1:
        raise InvalidInputError("a study has workers of its own; start it without a launcher")
    place = Path(output).expanduser()
    with alone_at(place.resolve(), str(output)):
        _require_study(place, force)
        waiting = [cell for cell in study.cells if not _stands(cell, place)]
        place.mkdir(exist_ok=True)
        text = yaml.safe_dump(study.to_dict(), sort_keys=False, allow_unicode=True)
        write_file(place / _OWN, text)
        if len(study.cells) > len(waiting):
            log(f"{counted_text(len(study.cells) - len(waiting), 'finished cell')} taken over")
        with progress.phase("cells", len(waiting)) as task:

            def done(name: str, answer: object = None) -> None:
                log(f"done: {name}")
                task.advance()

            if min(workers or study.workers, len(waiting)) > 1:
                requests = {cell.title: _request(cell, place) for cell in waiting}
                called = f"{run_cell.__module__}:{run_cell.__name__}"
                work_in_processes(called, requests, workers or study.workers, done)
            else:
                for cell in waiting:
                    _run_here(cell, place, log)
                    done(cell.title)
        comparison = _compared(study, place)
        kept = _keep(study, comparison, place)
        write_comparison(comparison, place)
    return StudyResult(place, comparison, len(waiting), kept)


def run_cell(recipe: dict[str, Any], output: str) -> None:
    """Runs one cell in a worker process, from its resolved recipe."""
    run(parse_recipe(recipe), output, check=False)


def _request(cell: Cell, place: Path) -> dict[str, Any]:
    return {"recipe": resolved(cell.recipe), "output": str(place / cell.folder)}


def _run_here(cell: Cell, place: Path, log: Listener) -> None:
    log(f"running {cell.title}")
    try:
        run(cell.recipe, place / cell.folder, check=False, log=log)
    except ModwrightError as error:
        raise ProcessFailed(f"{cell.title}: {error}", error.exit_code) from error


def _require_study(place: Path, force: bool) -> None:
    """Refuses a folder that holds something else; with ``force`` the cells of a study go."""
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"cannot write {str(place)!r}: it is a file; name a directory")
    if place.is_dir() and any(place.iterdir()) and not (place / _OWN).is_file():
        raise CheckpointError(f"{str(place)!r} holds something else than a study; name another")
    if force:
        for old in ("cells", _KEPT):
            shutil.rmtree(place / old, ignore_errors=True)


def _stands(cell: Cell, place: Path) -> bool:
    full = {**resolved(cell.recipe), "output": ""}
    return is_complete(place / cell.folder, full, force=False)


def _compared(study: Study, place: Path) -> Comparison:
    reports = [read_report(place / cell.folder) for cell in study.cells]
    rows = [
        Row(arm, tuple(_measured(c, r) for c, r in zip(study.cells, reports) if c.arm == arm))
        for arm in study.arms
    ]
    notes = []
    if len({tuple(sorted(report.versions.items())) for report in reports}) > 1:
        notes.append("Cells were run with different versions of the libraries.")
    facts = {
        "created": datetime.date.today().isoformat(),
        "versions": versions(),
        "reproduce": f"modwright study {shlex.quote(study.name)} -o {shlex.quote(place.name)}",
        "study": study.to_dict(),
    }
    found = Comparison(study.title, tuple(rows), "arm", study.keep, None, tuple(notes), facts)
    if study.keep is None:
        return found
    best = next(iter(found.ranked(study.keep)), None)
    if best is None:
        raise InvalidInputError(f"keep.metric: no cell has a finite {study.keep.name}")
    sign = 1 if study.keep.lower_is_better else -1
    numbers = ((study.keep.of(one), model.label) for one, model in zip(best.each(), best.models))
    known = [(sign * number, label) for number, label in numbers if number is not None]
    return replace(found, kept=(best.name, min(known)[1]))


def _measured(cell: Cell, report: Report) -> Measured:
    seconds = sum(sum(stage.seconds.values()) for stage in report.stages)
    return Measured(f"seed {cell.seed}", report.after, seconds, cell.folder)


def _keep(study: Study, comparison: Comparison, place: Path) -> Path | None:
    """Copies the cell that was chosen, unless the copy stands."""
    if comparison.kept is None:
        return None
    arm, label = comparison.kept
    (cell,) = (one for one in study.cells if (one.arm, f"seed {one.seed}") == (arm, label))
    source, kept = place / cell.folder, place / _KEPT
    names = ("report.json", "recipe.yaml")
    if kept.is_dir() and not any(filecmp.cmpfiles(source, kept, names, shallow=False)[1:]):
        return kept
    with whole_directory(kept, force=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return kept
