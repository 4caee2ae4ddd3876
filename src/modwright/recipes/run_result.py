"""Where a run writes, and what it left there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modwright.checkpoint import Checkpoint, rehearse
from modwright.core import distributed
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.reading import read_yaml
from modwright.edits.verify import Reopened
from modwright.recipes.schema import Recipe
from modwright.report import Report

if TYPE_CHECKING:
    from modwright.recipes.training_schema import TrainingRecipe

__all__ = ["RunResult", "is_result_of", "output_path", "require_output"]
__all__ += ["is_complete"]


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        output: the directory.
        report: what was measured.
        reopened: what the check in a new process saw, if it was asked for.
        done_before: the result stood there already.
        log: the file beside the output.
    """

    output: Path
    report: Report
    reopened: Reopened | None
    done_before: bool = False
    log: Path | None = None


def output_path(recipe: Recipe | TrainingRecipe, output: str | Path | None) -> Path:
    """The directory to write.

    Raises:
        InvalidInputError: neither the caller nor the recipe names one.
        CheckpointError: it cannot be one.
    """
    if not str(output or recipe.output):
        raise InvalidInputError("no output: give `output:` in the recipe or -o on the command line")
    place = Path(output or recipe.output).expanduser()
    if not place.resolve().name:
        raise CheckpointError(f"cannot write {str(place)!r}: name a directory below it")
    return place


def require_output(opened: Checkpoint, place: Path, force: bool) -> None:
    """Goes through the save without weights: would the result find its place?

    Raises:
        CheckpointError: as a save would; or the place is the model that the recipe begins with.
    """
    source = opened.source.path
    if source is not None and source.resolve() == place.resolve():
        raise CheckpointError(
            f"{str(place)!r} is the model that the recipe begins with; name another directory, or "
            "it could not be run again"
        )
    rehearse(opened.model, place, source=opened.source, force=force)


def is_complete(place: Path, full: dict[str, Any], force: bool, info: str = "report.json") -> bool:
    """Whether the result of this resolved recipe is there, so that nothing is to be done.

    The main process looks, and all get its answer.

    ``info`` is the file that says how it went.

    Raises:
        CheckpointError: something else is there, and ``force`` does not allow to replace it.
    """
    with distributed.fail_together():
        return distributed.broadcast(
            distributed.is_main() and _stands_already(place, full, force, info)
        )


def _stands_already(place: Path, full: dict[str, Any], force: bool, info: str) -> bool:
    if force or not place.is_dir() or not any(place.iterdir()):
        return False
    if is_result_of(place, full, info):
        return True
    raise CheckpointError(
        f"{str(place)!r} holds something else than the result of this recipe; name another "
        "directory with -o, or replace it with --force"
    )


def is_result_of(place: Path, full: dict[str, Any], info: str = "report.json") -> bool:
    """Whether a whole result of this resolved recipe stands there."""
    try:
        stored = read_yaml(place / "recipe.yaml")
    except CheckpointError:
        return False
    whole = all((place / name).is_file() for name in ("config.json", info))
    return whole and bool(stored == full)
