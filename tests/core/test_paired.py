"""A ratio of paired runs says how sure it is, and concludes nothing from noise."""

from __future__ import annotations

import math
import random

import pytest

from modwright.core.paired import FEWEST_PAIRS, PairedRatio


def test_fault_A18_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of noise around 1, at most one measurement in twenty may see a difference."""
    draw = random.Random(0)
    for pairs in (6, 9, 14, 40):
        seen = sum(
            PairedRatio.of([math.exp(draw.gauss(0, 0.2)) for _ in range(pairs)]).differs
            for _ in range(2000)
        )
        assert seen / 2000 < 0.065


@pytest.mark.parametrize(
    ("ratios", "low", "high", "differs"),
    [
        ([2.0, 2.1, 2.2], 2.0, 2.2, False),  # too few to conclude anything
        ([2.0] * (FEWEST_PAIRS - 1), 2.0, 2.0, False),
        ([2.0] * FEWEST_PAIRS, 2.0, 2.0, True),
        ([1.1, 1.2, 1.3, 1.2, 1.1, 0.9], 0.9, 1.3, False),
        ([1.1, 1.2, 1.3, 1.2, 1.1, 0.9, 1.2, 1.2, 9.0], 1.1, 1.3, True),  # one outlier a side
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.95], 0.5, 0.95, True),
    ],
)
def test_fault_A18_a_difference_needs_an_interval_beside_one(
    ratios: list[float], low: float, high: float, differs: bool
) -> None:
    found = PairedRatio.of(ratios)
    assert (found.low, found.high, found.differs) == (low, high, differs)
    assert found.pairs == len(ratios)
    assert found.is_settled is (len(ratios) >= FEWEST_PAIRS)


def test_it_is_written_with_its_interval() -> None:
    found = PairedRatio(1.123, 0.934, 1.2, 12)
    assert f"{found}" == str(found) == f"{found:.2f}" == "1.12 (0.93-1.20)"
    assert f"{found:.1f}" == "1.1 (0.9-1.2)"
    assert not found.is_narrow(0.05) and PairedRatio(1, 0.98, 1.02, 6).is_narrow(0.05)
    assert not PairedRatio(1, 1, 1, 3).is_narrow(0.05)
