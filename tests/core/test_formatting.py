from __future__ import annotations

import pytest

from modwright.core.formatting import percent
from modwright.cost import format_number


@pytest.mark.parametrize(
    ("number", "unit", "told"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (1000, "", "1 k"),
        (999_949, "", "999.9 k"),
        (999_950, "", "1 M"),
        (134_515_008, "", "134.5 M"),
        (269_030_016, "B", "269 MB"),
        (512, "B", "512 B"),
        (6.9e10, "", "69 G"),
        (3e18, "", "3000 P"),
        (-1500, "B", "-1.5 kB"),
        (2.25, "", "2.2"),
    ],
)
def test_human(number: float, unit: str, told: str) -> None:
    assert format_number(number, unit) == told


def test_percent() -> None:
    assert percent(1, 3) == "33.3 %"
    assert percent(3, 3) == "100.0 %"
    assert percent(1, 3, digits=0) == "33 %"
    assert percent(0, 0) == "-"
