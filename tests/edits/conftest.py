"""Edited models that many tests look at: planned, applied and verified once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from edit_cases import CASES
from torch import Tensor

from helpers import edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.edits import Applied, Change, remove


@dataclass(frozen=True)
class Edited:
    """An edited model, and what its source was like.

    Attributes:
        source: the model that was edited; shared.
        applied: the result; shared, so a test that changes the model takes `copy`.
        dense: outputs of the source before.
        source_unchanged: whether the source held the same bits afterwards.
    """

    source: Any
    applied: Applied
    dense: Tensor
    source_unchanged: bool

    @property
    def model(self) -> Any:
        return self.applied.model

    def copy(self) -> Any:
        """The model, for a test that changes it."""
        return copy.deepcopy(self.applied.model)


@pytest.fixture(scope="session")
def edited(tiny: Any) -> Callable[..., Edited]:
    """``edited(preset, case)``, a case of ``CASES`` or ``no-block-0``; keywords are ``tiny``'s."""
    made: dict[str, Edited] = {}

    def make(preset: str, case: str, **fields: Any) -> Edited:
        key = repr((preset, case, sorted(fields.items())))
        if key not in made:
            source = tiny(preset, **fields)
            before, dense = snapshot(source), outputs(source)
            applied = edit(source, _change(Anatomy.of(source), case))
            made[key] = Edited(source, applied, dense, unchanged(source, before))
        return made[key]

    return make


def _change(anatomy: Anatomy, case: str) -> Change:
    return remove(anatomy.blocks[0]) if case == "no-block-0" else CASES[case].change(anatomy)
