"""What the other processes of a run do: they open the same model and walk their share of the data.

The main process plans, measures and writes. A step's model is the one that it keeps in the work
directory, so all processes must see the same file system.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.anatomy import Anatomy
from modwright.calibration.processes import Processes
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import ProcessFailed
from modwright.recipes.schema import Recipe
from modwright.recipes.settings import torch_as_asked
from modwright.recipes.texts import step_windows
from modwright.recipes.work import WorkPlace
from modwright.surgery import make_method

__all__ = ["Prepare", "StepBegins", "help_run"]


@dataclass(frozen=True)
class Prepare:
    """The main process opens the model and reads the texts; so do the others."""


@dataclass(frozen=True)
class StepBegins:
    """A step that calibrates.

    Attributes:
        index: of the step, from 1.
        model: of the state that it begins with; 0 is the model as it came.
        statistics: where they are kept.
    """

    index: int
    model: int
    statistics: Path


def help_run(recipe: Recipe, place: Path, team: Processes) -> None:
    """Helps the main process of ``team`` with a recipe until it is done.

    Raises:
        ProcessFailed: it failed, or this process did; the main one says why.
    """
    helper = _Helper(recipe, WorkPlace(place), team)
    with torch_as_asked(recipe):
        while (message := team.hear()) is not None:
            try:
                helper.do(message)
            except ProcessFailed:
                raise
            except Exception as error:
                team.confess(error)


class _Helper:
    def __init__(self, recipe: Recipe, work: WorkPlace, team: Processes) -> None:
        self.recipe, self.work, self.team = recipe, work, team
        self.model: Any = None
        self.at = 0

    def do(self, message: Any) -> None:
        if isinstance(message, Prepare):
            with self.team.same_fate():
                opened = open_checkpoint(self.recipe.model, dtype=self.recipe.dtype)
                self.windows = step_windows(self.recipe, opened)
                self.model = opened.model
        elif isinstance(message, StepBegins):
            with torch_as_asked(self.recipe):
                self._walk(message)

    def _walk(self, step: StepBegins) -> None:
        if step.model != self.at:
            self.model, self.at = self.work.model(step.model), step.model
        asked = self.recipe.steps[step.index - 1]
        method = make_method(asked.method, asked.options)
        self.team.decide(
            lambda: method.plan(
                Anatomy.of(self.model), self.windows[step.index - 1], directory=step.statistics
            )
        )
