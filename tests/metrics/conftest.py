"""Text of words that the tokenizers of the small models know, and the example report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from modwright.report import Report, read_report
from report.conftest import EXAMPLE


@pytest.fixture
def text(tmp_path: Path) -> str:
    rng = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{rng.randrange(45)}" for _ in range(120)))
    return str(path)


@pytest.fixture(scope="session")
def example() -> Report:
    return read_report(EXAMPLE)
