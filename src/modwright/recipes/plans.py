"""The texts that the steps of a recipe read, all before any long work, and its plans."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from modwright.analysis import Subject
from modwright.anatomy import Anatomy
from modwright.calibration import (
    TensorBatches,
    TextData,
    TokenWindows,
    from_tensors,
    token_windows,
)
from modwright.checkpoint import Checkpoint
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.files import whole_directory, write_file
from modwright.core.plugins import add_plugin
from modwright.core.progress import SILENT, Progress
from modwright.core.reading import read_yaml
from modwright.data import make_data
from modwright.data.text_mixture import mixed_windows
from modwright.data.texts import default_texts
from modwright.edits import Applied, Plan
from modwright.edits import apply as apply_plan
from modwright.metrics.perplexity import position_limit
from modwright.recipes.load import resolved
from modwright.recipes.runner import torch_settings
from modwright.recipes.schema import METHOD, Data, Recipe

__all__ = [
    "apply_plans",
    "calibration_windows",
    "load_plans",
    "make_plans",
    "save_plans",
    "step_digests",
]
__all__ += ["step_windows"]

Tokens = TokenWindows | TensorBatches


def step_windows(recipe: Recipe, opened: Checkpoint) -> list[Tokens | None]:
    """For each step what it calibrates on, or None where it needs none."""
    made: dict[str, Any] = {}
    found: list[Any] = []
    for index, step in enumerate(recipe.steps):
        data = step.calibration or recipe.calibration
        needed = step.built.requires.calibration and step.built.wants_data()
        key = data.model_dump_json()
        if needed and key not in made:
            try:
                made[key] = calibration_windows(_subject(opened), step.method, data)
            except InvalidInputError as error:
                where = f"steps.{index}.calibration" if step.calibration else "calibration"
                raise InvalidInputError(f"{where}: {error}") from error
        found.append(made[key] if needed else None)
    return found


def step_digests(
    recipe: Recipe, opened: Checkpoint, windows: Sequence[Tokens | None]
) -> list[str | None]:
    """Of what each step reads; what could not be done later is refused."""
    found: list[str | None] = []
    for index, (step, tokens) in enumerate(zip(recipe.steps, windows)):
        try:
            own = None if step.kind == METHOD else step.built.digest(opened)
        except InvalidInputError as error:
            raise InvalidInputError(f"steps.{index}.{step.kind}: {error}") from error
        found.append(own if tokens is None else tokens.recipe["sha256"])
    return found


def _subject(opened: Checkpoint) -> Subject:
    return Subject(opened.model, tokenizer=opened.tokenizer, name=opened.source.name)


def calibration_windows(subject: Subject, what: str, data: Data) -> Any:
    """Windows of text, or images, for a model; ``what`` is what asks for them.

    Raises:
        InvalidInputError: the model cannot read them.
    """
    if not subject.anatomy.family.inputs().is_text:
        if isinstance(data.data, dict) and "images" in data.data:
            return _images(data)
        raise InvalidInputError(
            f"{what} calibrates on text here, and {subject.name} reads images; give it "
            "images: calibration: {data: {images: FOLDER}}"
        )
    if subject.tokenizer is None:
        raise InvalidInputError(
            f"{what} calibrates on text, and {subject.name} has no tokenizer; give a "
            "model that has one"
        )
    limit = position_limit(subject.model)
    if limit is not None and data.length > limit:
        raise InvalidInputError(
            f"length is {data.length}; the model has positions for 2..{limit} tokens"
        )
    fields = data.model_dump()
    text, *others = map(fields.pop, ("data", "split", "column", "encoding"))
    if text == default_texts():  # what nobody asked for is no reason to refuse one window
        text = text[: data.windows]
    if isinstance(text, list):
        return mixed_windows(subject.tokenizer, text, **fields)
    source = TextData(text, *others) if isinstance(text, str) else text
    return token_windows(subject.tokenizer, source, **fields)


def _images(data: Data) -> TensorBatches:
    """As many images as there would be windows of text."""
    made = make_data(data.data)
    rows = min(data.windows, len(made.train))
    batches = made.batches("train", data.batch_size, rows)
    pixels = [{"pixel_values": batch["pixel_values"]} for batch in batches]
    return from_tensors(pixels, made.name)


def make_plans(
    recipe: Recipe, opened: Checkpoint, progress: Progress = SILENT
) -> tuple[list[Plan], Any]:
    """Plans of all steps, each on the model that the earlier ones lead to, and the last model."""
    model = opened.model
    plans: list[Plan] = []
    for index, step in enumerate(recipe.steps):
        if step.kind != METHOD:
            raise InvalidInputError(
                f"steps.{index}: {step.built.title()} has no plan; `modwright run` does it"
            )
    for step, windows in zip(recipe.steps, step_windows(recipe, opened)):
        with torch_settings(recipe):
            plan = step.built.plan(Anatomy.of(model), windows, progress=progress)
            model = apply_plan(model, plan).model
        plans.append(plan)
    return plans, model


def save_plans(plans: list[Plan], recipe: Recipe, directory: Path, *, force: bool = False) -> Path:
    """Writes one directory per step, and the recipe that they come from."""
    stored = yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True)
    with whole_directory(directory, force=force) as folder:
        for index, plan in enumerate(plans, start=1):
            plan.save(folder / f"step-{index}")
        write_file(folder / "recipe.yaml", stored)
    return directory


def load_plans(directory: Path) -> tuple[list[Plan], dict[str, Any]]:
    """Reads what :func:`save_plans` wrote, or one plan alone; and the recipe."""
    if (directory / "plan.json").exists():
        return [Plan.load(directory)], {}
    steps = sorted(directory.glob("step-*"), key=lambda place: (len(place.name), place.name))
    recipe = None
    with suppress(CheckpointError):
        recipe = read_yaml(directory / "recipe.yaml")
    if not steps or not isinstance(recipe, dict):
        raise CheckpointError(
            f"{str(directory)!r} holds no plan; `modwright plan RECIPE --save DIR` makes one"
        )
    for plugin in recipe.get("plugins") or ():
        add_plugin(plugin)
    return [Plan.load(step) for step in steps], recipe


def apply_plans(model: Any, plans: list[Plan]) -> Applied:
    """Applies plans one after the other."""
    if not plans:
        raise CheckpointError("there is no plan to apply")
    for plan in plans:
        applied = apply_plan(model, plan)
        model = applied.model
    return applied
