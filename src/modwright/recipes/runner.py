"""What every run of a recipe has: an output, a work directory, a log, threads and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from modwright.checkpoint import Checkpoint, rehearse
from modwright.core import distributed
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.core.reading import read_yaml
from modwright.recipes.run_directory import RunDirectory
from modwright.recipes.run_log import RunLog

__all__ = ["Listener", "Runner", "is_complete", "require_output", "torch_settings", "unheard"]

Listener = Callable[[str], None]


def unheard(message: str) -> None:
    """Who nobody listens to."""


class Asked(Protocol):
    """What recipes of all kinds say."""

    output: str

    @property
    def threads(self) -> int | None: ...

    @property
    def seed(self) -> int: ...


@contextmanager
def torch_settings(recipe: Asked) -> Iterator[None]:
    """Torch's threads and seed as a recipe asks, for one step or for all the rest that it does.

    Every step begins with the same seed, so that it draws the same after a stop.
    """
    threads = torch.get_num_threads()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            yield
    finally:
        torch.set_num_threads(threads)


def output_path(recipe: Asked, output: str | Path | None) -> Path:
    """The directory to write; refused where nobody names one, or it cannot be one."""
    if not str(output or recipe.output):
        raise InvalidInputError("no output: give `output:` in the recipe or -o on the command line")
    place = Path(output or recipe.output).expanduser()
    if not place.resolve().name:
        raise CheckpointError(f"cannot write {str(place)!r}: name a directory below it")
    return place


def require_output(opened: Checkpoint, place: Path, force: bool) -> None:
    """Goes through the save without weights; the place is not the model that it begins with."""
    source = opened.source.path
    if source is not None and source.resolve() == place.resolve():
        raise CheckpointError(
            f"{str(place)!r} is the model that the recipe begins with; name another directory, or "
            "it could not be run again"
        )
    rehearse(opened.model, place, source=opened.source, force=force)


def is_complete(place: Path, full: dict[str, Any], force: bool, info: str = "report.json") -> bool:
    """Whether the result of this resolved recipe is there, with ``info`` in it, in all processes.

    Something else that is there is refused, unless ``force`` allows to replace it.
    """
    with distributed.fail_together():
        return distributed.broadcast(distributed.is_main() and _stands(place, full, force, info))


# Keys that recipes beside older results do not have.
_NEWER: dict[str, Any] = {"plugins": [], "device": None}


def _stands(place: Path, full: dict[str, Any], force: bool, info: str) -> bool:
    if force or not place.is_dir() or not any(place.iterdir()):
        return False
    with suppress(CheckpointError):
        whole = all((place / name).is_file() for name in ("config.json", info))
        found = read_yaml(place / "recipe.yaml")
        newer = {key: value for key, value in _NEWER.items() if key in full}
        if whole and isinstance(found, dict) and {**newer, **found} == full:
            return True
    raise CheckpointError(
        f"{str(place)!r} holds something else than the result of this recipe; name another "
        "directory with -o, or replace it with --force"
    )


class Runner:
    """A run under way of a recipe, into a place; its work directory and its log lie beside that."""

    info = "report.json"  # of the output: how it went

    def __init__(
        self,
        recipe: Any,
        full: dict[str, Any],
        output: str | Path | None,
        force: bool,
        progress: Progress,
        log: Listener,
    ) -> None:
        self.recipe, self.full = recipe, {**full, "output": ""}
        self.place = output_path(recipe, output)
        self.text = yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True)
        self.work, self.run_log = RunDirectory(self.place), RunLog(self.place)
        self.force = force or self.work.may_replace(self.full)
        self.progress = progress if distributed.is_main() else SILENT
        self.log = self.run_log.listener(log if distributed.is_main() else unheard)

    def stands(self) -> bool:
        """Whether the result is there; what a killed run left beside it goes then."""
        found = is_complete(self.place, self.full, self.force, self.info)
        if found:
            self.log(
                f"{self.place} holds the result of this recipe already; --force makes it again"
            )
            distributed.main_process_only(lambda: self.work.clean_up(self.full))
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The main process keeps other runs out, and its log listens; torch is as it is asked."""
        with ExitStack() as stack:
            with distributed.fail_together():
                if distributed.is_main():
                    stack.enter_context(self.work.alone())
                    stack.enter_context(self.run_log.open())
            stack.enter_context(torch_settings(self.recipe))
            yield

    def begin(self, goes_on: bool, *lines: str) -> None:
        """From here on the run leaves traces: the log, and the work directory."""
        self.run_log.begin(goes_on=goes_on)
        for line in (*lines, "recipe, resolved:\n" + self.text.rstrip()):
            self.run_log.write(line)
        self.work.acquire(self.full, force=self.force)

    def end(self) -> None:
        """The output stands: the work is not needed any more."""
        self.work.remove()
        self.run_log.write("done")
