"""modwright: one workbench for the anatomy of Transformers.

Importing it is quick and makes transformers' Auto classes load remodelled checkpoints. The names
below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modwright import _autoload

if TYPE_CHECKING:
    from modwright.anatomy import Anatomy as Anatomy
    from modwright.anatomy import register_family as register_family
    from modwright.checkpoint import export as export
    from modwright.checkpoint import open as open
    from modwright.checkpoint import save as save
    from modwright.edits import Plan as Plan
    from modwright.edits import verify as verify

__version__ = "0.1.0"

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
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modwright' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__


_autoload.watch()
