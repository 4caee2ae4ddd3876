"""Writes measured figures down, and says how long a measurement may take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FULL", "figures_only", "note"]

FULL = bool(os.environ.get("MODWRIGHT_FIGURES"))
"""Figures are wanted: measure as docs quote it, and not as briefly as a test may."""

# What takes too long for every run; pages quote it.
figures_only = pytest.mark.skipif(not FULL, reason="measured where MODWRIGHT_FIGURES is set")


def note(figure: str, **values: Any) -> None:
    """A JSON line in the file that MODWRIGHT_FIGURES names, if it names one."""
    path = os.environ.get("MODWRIGHT_FIGURES")
    if not path:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a") as out:
        out.write(json.dumps({"figure": figure, **values}) + "\n")
