"""Studies by name: one file each. What registers itself here is what ``modwright study`` knows."""

from __future__ import annotations

from modwright.recipes.studies.base import STUDIES, register_study

__all__ = ["STUDIES", "register_study"]
