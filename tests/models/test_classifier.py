"""Feature maps of image classifiers are found by number, from both ends."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from models.tiny import tiny
from modwright.core.errors import InvalidInputError
from modwright.models.classifier import chosen_indices


@pytest.mark.parametrize(
    ("indices", "chosen"),
    [(None, [0, 1, 2, 3]), (1, [3]), (3, [1, 2, 3]), ((0, -1), [0, 3]), ([-2], [2]), ([], [])],
)
def test_a_number_means_the_last_ones(
    indices: int | Sequence[int] | None, chosen: list[int]
) -> None:
    assert chosen_indices(indices, 4) == chosen


@pytest.mark.parametrize(
    ("indices", "told"),
    [(0, "the last 0 of 4"), (5, "the last 5 of 4"), ([4], "feature map 4"), ([-5], "map -5")],
)
def test_maps_that_are_not_there_are_refused(indices: int | Sequence[int], told: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(told)):
        chosen_indices(indices, 4)


def test_a_model_returns_the_last_maps() -> None:
    model = tiny("metaformer")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        every = model.forward_intermediates(pixels)
        last = model.forward_intermediates(pixels, indices=2)
    assert len(last) == 2 < len(every)
    assert all(torch.equal(one, other) for one, other in zip(last, every[-2:]))
