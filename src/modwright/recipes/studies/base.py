"""The registry of studies: each is a function that returns what a study's file would hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modwright.core.registry import Registry

__all__ = ["STUDIES", "MakeStudy", "register_study"]

MakeStudy = Callable[[], Mapping[str, Any]]

STUDIES: Registry[MakeStudy] = Registry("study", "modwright.recipes.studies")


def register_study(name: str) -> Callable[[MakeStudy], MakeStudy]:
    """Decorator that makes a study known to ``modwright study NAME``.

    The function returns plain values with the keys of a study's file; a path under ``recipe`` is
    relative to the working directory.

    Raises:
        InvalidInputError: the name is taken.

    Example:
        >>> from modwright.core.registry import registries_restored
        >>> from modwright.recipes.study import load_study
        >>> with registries_restored():
        ...     @register_study("fewer-attentions")
        ...     def fewer_attentions():
        ...         steps = [{"method": "drop", "parts": "attention[0]"}]
        ...         recipe = {"model": "preset:tiny-llama", "steps": steps}
        ...         parts = ["attention[0]", "attention[1]"]
        ...         return {"recipe": recipe, "arms": {"steps.0.parts": parts}}
        ...     [cell.arm for cell in load_study("fewer-attentions").cells]
        ['parts=attention[0]', 'parts=attention[1]']
    """
    return STUDIES.register(name)
