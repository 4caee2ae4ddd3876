"""Plans of a whole recipe, saved, and applied later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.errors import CheckpointError
from modwright.progress import SILENT, Progress
from modwright.recipes.load import resolved
from modwright.recipes.measure import calibration_windows
from modwright.recipes.schema import Recipe
from modwright.surgery import make_method

__all__ = ["apply_plans", "load_plans", "make_plans", "save_plans"]


def make_plans(
    recipe: Recipe, opened: Checkpoint, progress: Progress = SILENT
) -> tuple[list[Plan], Any]:
    """Plans every step, each on the model that the earlier ones lead to; returns that model too."""
    model = opened.model
    plans: list[Plan] = []
    for step in recipe.steps:
        method = make_method(step.method, step.options)
        windows = None
        if method.needs.calibration and method.wants_data():
            windows = calibration_windows(opened.tokenizer, step.calibration or recipe.calibration)
        plan = method.plan(Anatomy.of(model), windows, progress=progress)
        plans.append(plan)
        model = apply_plan(model, plan).model
    return plans, model


def save_plans(plans: list[Plan], recipe: Recipe, directory: Path) -> Path:
    """Writes one directory per step, and the recipe that they come from.

    Raises:
        CheckpointError: something stands there already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory} is not empty; choose a new directory for the plan")
    for index, plan in enumerate(plans, start=1):
        plan.save(directory / f"step-{index}")
    (directory / "recipe.yaml").write_text(yaml.safe_dump(resolved(recipe), sort_keys=False))
    return directory


def load_plans(directory: Path) -> tuple[list[Plan], dict[str, Any]]:
    """Reads what :func:`save_plans` wrote, or one plan alone.

    Raises:
        CheckpointError: no plan stands there.
    """
    if (directory / "plan.json").exists():
        return [Plan.load(directory)], {}
    steps = sorted(directory.glob("step-*"), key=lambda p: int(p.name.partition("-")[2]))
    if not steps:
        raise CheckpointError(
            f"{str(directory)!r} holds no plan; `modwright plan RECIPE --save DIR` makes one"
        )
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    return [Plan.load(step) for step in steps], json.loads(json.dumps(recipe))


def apply_plans(model: Any, plans: list[Plan]) -> Applied:
    """Applies plans one after the other."""
    applied = None
    for plan in plans:
        applied = apply_plan(model, plan)
        model = applied.model
    if applied is None:
        raise CheckpointError("there is no plan to apply")
    return applied
