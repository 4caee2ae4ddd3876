"""YAML to steps: checked before any work, resumable, measured after each step."""

from modwright.recipes.load import load_recipe
from modwright.recipes.schema import Recipe, Step

__all__ = ["Recipe", "Step", "load_recipe"]
