"""The example report (its numbers are invented) and a builder of small ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from modwright.report import Report, read_report

EXAMPLE = Path(__file__).parent / "example_report.json"


@pytest.fixture(scope="session")
def example() -> Report:
    return read_report(EXAMPLE)
