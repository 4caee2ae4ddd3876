"""Kinds of step of a recipe, one file each: ``method``, ``train``, ``heal``, ``export``."""

from modwright.recipes.steps.base import STEPS, StepContext, StepKind, StepOutcome, step_kind

__all__ = ["STEPS", "StepContext", "StepKind", "StepOutcome", "step_kind"]
