"""modwright: one workbench for the anatomy of Transformers.

Importing it is quick and makes transformers' Auto classes load remodeled checkpoints. The names
below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modwright import _autoload

if TYPE_CHECKING:
    from modwright.anatomy import Anatomy as Anatomy
    from modwright.anatomy import register_family as register_family
    from modwright.calibration import calibrate as calibrate
    from modwright.checkpoint import export as export
    from modwright.checkpoint import open as open
    from modwright.checkpoint import save as save
    from modwright.edits import Plan as Plan
    from modwright.edits import verify as verify
    from modwright.surgery import apply as apply
    from modwright.surgery import plan as plan

__version__ = "0.2.0"

_HOMES = {
    "Anatomy": "modwright.anatomy",
    "Plan": "modwright.edits",
    "apply": "modwright.surgery",
    "calibrate": "modwright.calibration",
    "export": "modwright.checkpoint",
    "open": "modwright.checkpoint",
    "plan": "modwright.surgery",
    "register_family": "modwright.anatomy",
    "save": "modwright.checkpoint",
    "verify": "modwright.edits",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _packages():
        return importlib.import_module(f"modwright.{name}")
    raise AttributeError(f"module 'modwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_packages()})


def _packages() -> set[str]:
    """The packages inside, which are imported when they are first used, as the names above are."""
    return {file.parent.name for file in Path(__file__).parent.glob("*/__init__.py")}


_autoload.watch()
