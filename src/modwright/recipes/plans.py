"""Plans of a whole recipe, saved, and applied later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint
from modwright.core.errors import CheckpointError
from modwright.core.files import whole_directory, write_file
from modwright.core.progress import SILENT, Progress
from modwright.core.reading import read_yaml
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.recipes.load import resolved
from modwright.recipes.schema import Recipe
from modwright.recipes.settings import torch_settings
from modwright.recipes.texts import step_windows

__all__ = ["apply_plans", "load_plans", "make_plans", "save_plans"]


def make_plans(
    recipe: Recipe, opened: Checkpoint, progress: Progress = SILENT
) -> tuple[list[Plan], Any]:
    """Plans every step, each on the model that the earlier ones lead to; returns that model too."""
    model = opened.model
    plans: list[Plan] = []
    for step, windows in zip(recipe.steps, step_windows(recipe, opened)):
        with torch_settings(recipe):
            plan = step.built.plan(Anatomy.of(model), windows, progress=progress)
            model = apply_plan(model, plan).model
        plans.append(plan)
    return plans, model


def save_plans(plans: list[Plan], recipe: Recipe, directory: Path, *, force: bool = False) -> Path:
    """Writes one directory per step, and the recipe that they come from.

    Raises:
        CheckpointError: something stands there already.
    """
    stored = yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True)
    with whole_directory(directory, force=force) as folder:
        for index, plan in enumerate(plans, start=1):
            plan.save(folder / f"step-{index}")
        write_file(folder / "recipe.yaml", stored)
    return directory


def load_plans(directory: Path) -> tuple[list[Plan], dict[str, Any]]:
    """Reads what :func:`save_plans` wrote, or one plan alone.

    Raises:
        CheckpointError: no plan stands there.
    """
    if (directory / "plan.json").exists():
        return [Plan.load(directory)], {}
    steps = sorted(directory.glob("step-*"), key=lambda place: (len(place.name), place.name))
    try:
        recipe = read_yaml(directory / "recipe.yaml")
    except CheckpointError:
        recipe = None
    if not steps or not isinstance(recipe, dict):
        raise CheckpointError(
            f"{str(directory)!r} holds no plan; `modwright plan RECIPE --save DIR` makes one"
        )
    return [Plan.load(step) for step in steps], recipe


def apply_plans(model: Any, plans: list[Plan]) -> Applied:
    """Applies plans one after the other."""
    applied = None
    for plan in plans:
        applied = apply_plan(model, plan)
        model = applied.model
    if applied is None:
        raise CheckpointError("there is no plan to apply")
    return applied
