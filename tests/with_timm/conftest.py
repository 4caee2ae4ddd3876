"""These tests run in an environment of their own: ``make test-timm``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for room in ("edits", "surgery"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))


@pytest.fixture(scope="session")
def vit() -> Callable[..., Any]:
    """Builds tiny ViTs of timm; see small_vits.py."""
    from small_vits import build

    return build
