"""The texts that a recipe reads to calibrate on.

All of them are read before any long work, so that a text that is missing or too short is refused
then.
"""

from __future__ import annotations

from typing import Any

from modwright.calibration import TextData, TokenWindows, token_windows
from modwright.checkpoint import Checkpoint
from modwright.core.errors import InvalidInputError
from modwright.recipes.schema import Data, PerplexityOf, Recipe
from modwright.tasks.perplexity import position_limit

__all__ = ["step_windows", "text_of", "writes_text"]


def text_of(asked: Data | PerplexityOf) -> tuple[TextData, dict[str, Any]]:
    """Where a text comes from, and the other fields of its entry in the recipe."""
    fields = asked.model_dump()
    positions = ("data", "split", "column", "encoding")
    return TextData(*(fields.pop(name) for name in positions)), fields


def writes_text(model: Any, tokenizer: Any) -> bool:
    """Whether perplexity and samples can be had of a model."""
    return tokenizer is not None and bool(getattr(model, "can_generate", lambda: False)())


def step_windows(recipe: Recipe, opened: Checkpoint) -> list[TokenWindows | None]:
    """For each step the tokens that it calibrates on, or None where it needs none.

    Raises:
        InvalidInputError: no tokenizer, no text, too little of it, or windows longer than the model
            takes.
    """
    made: dict[Data, TokenWindows] = {}
    found: list[TokenWindows | None] = []
    for index, step in enumerate(recipe.steps):
        method = step.built
        if not (method.requires.calibration and method.wants_data()):
            found.append(None)
            continue
        data = step.calibration or recipe.calibration
        where = f"steps.{index}.calibration" if step.calibration else "calibration"
        if data not in made:
            try:
                made[data] = _windows(opened, step.method, data)
            except InvalidInputError as error:
                raise InvalidInputError(f"{where}: {error}") from error
        found.append(made[data])
    return found


def _windows(opened: Checkpoint, method: str, data: Data) -> TokenWindows:
    if not opened.anatomy.family.inputs().is_text:
        raise InvalidInputError(
            f"{method} calibrates on text here, and {opened.source.name} reads images; give it "
            "images in Python: modwright.apply(model, method, calibration.from_tensors(batches))"
        )
    if opened.tokenizer is None:
        raise InvalidInputError(
            f"{method} calibrates on text, and {opened.source.name} brings no tokenizer; give a "
            "model that has one"
        )
    limit = position_limit(opened.model)
    if limit is not None and data.length > limit:
        raise InvalidInputError(
            f"length is {data.length}; the model has positions for 2..{limit} tokens"
        )
    text, fields = text_of(data)
    return token_windows(opened.tokenizer, text, **fields)
