"""modwright: one workbench for the anatomy of Transformers.

Importing it is quick and makes transformers' Auto classes load remodeled checkpoints. The names
below are imported when they are first used.
"""

from __future__ import annotations

import importlib
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

# Imported when first used, as the names above are.
_PACKAGES = (
    "analysis",
    "anatomy",
    "calibration",
    "checkpoint",
    "core",
    "cost",
    "edits",
    "models",
    "nn",
    "papers",
    "recipes",
    "report",
    "surgery",
    "tasks",
    "training",
)

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"modwright.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modwright' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})


_autoload.watch()
