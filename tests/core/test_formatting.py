from __future__ import annotations

import pytest

from modwright.core import formatting
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


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("format_bytes", [538_060_032, 512, 999_960], ["538.1 MB", "512 B", "1.0 MB"]),
        ("scaled_text", [134_515_008, 12_345, 999], ["134.5 M", "12.35 k", "999"]),
        ("tick_text", [120_000_000, 100_000, 32.5], ["120 M", "100 k", "32.5"]),
        ("bytes_text", [269_030_016, 512], ["269.0 MB", "512 B"]),
        ("count_text", [134_515_008], ["134,515,008"]),
        ("nats_text", [0.31214, 0.0, 0.000012345], ["0.3121", "0", "1.234e-05"]),
        ("score_text", [0.83333, 27.1, 12345.6], ["0.8333", "27.1000", "12,346"]),
        ("share_text", [0.1071], ["10.7 %"]),
        ("factor_text", [1.1824], ["× 1.18"]),
        ("seconds_text", [8.24, 200], ["8.2 s", "3 min 20 s"]),
    ],
)
def test_every_kind_of_number_has_one_form(name: str, values: list[float], told: list[str]) -> None:
    assert [getattr(formatting, name)(value) for value in values] == told


def test_an_interval_has_both_ends() -> None:
    assert formatting.interval_text(0.934, 1.081) == "0.93–1.08"
