"""What apply writes is its own: the source stays bit-equal, and the books are exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import edit, snapshot, unchanged
from models.tiny import TINY
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.edits import Applied, Change


def other(value: Tensor) -> Tensor:
    """A tensor of the same kind that differs in every entry."""
    return ~value if value.dtype == torch.bool else value + 1


def names_of(model: Any) -> dict[str, Tensor]:
    """Every name of every part; a head that shares the token table is written through that."""
    anatomy = Anatomy.of(model)
    return {
        f"{address}.{name}": value
        for address, part in anatomy.parts()
        for name, value in part.parameters().items()
        if not (anatomy.is_tied and address == "head" and name == "weight")
    }


def check_writes(model: Any, values: Mapping[str, Tensor]) -> None:
    before, sampled = snapshot(model), names_of(model)
    applied = edit(model, Change((), values), check=False)
    assert unchanged(model, before)
    check_books(applied, before)
    found = names_of(applied.model)
    for name, value in sampled.items():
        wanted = values.get(name, value)
        assert torch.equal(found[name], wanted.to(found[name])), name


def check_books(applied: Applied, before: Mapping[str, Tensor]) -> None:
    """Kept is what is bit-equal, changed is what is not."""
    after, books = snapshot(applied.model), applied.tensor_diff
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert set(books.kept) == same
    assert set(books.changed) == set(after) - same
    assert books.added == books.removed == ()


def write_everything(model: Any) -> None:
    values = {name: other(value) for name, value in names_of(model).items()}
    check_writes(model, values)
    for name in list(values)[:: max(1, len(values) // 4)]:
        check_writes(model, {name: values[name]})


def test_fault_A1_the_source_is_bit_equal_after_every_name_was_written(
    tiny: Any, preset: str
) -> None:
    write_everything(tiny(preset))


@pytest.mark.parametrize("architecture", sorted(TINY.keys() - {"residual_network"}))
def test_fault_A1_the_source_is_bit_equal_for_image_models(architecture: str) -> None:
    write_everything(tiny_image_model(architecture))
