"""These tests need the source distribution of transformers: ``make test-transformers``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _warnings_are_logged() -> Iterator[None]:
    """Some tests read what transformers logs; the fixture of all tests has silenced it."""
    from transformers.utils import logging

    logging.set_verbosity_warning()
    yield
    logging.set_verbosity_error()
