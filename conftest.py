"""What doctests in src/ and tests in tests/ share."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Examples use torch without importing it."""
    if type(request.node).__name__ == "DoctestItem":
        import torch

        doctest_namespace["torch"] = torch
