"""Modules of plugins that are files are found by name in every process.

This is imported with modwright itself, so it imports the rest when such a module is asked for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["PLUGIN_MODULE"]

PLUGIN_MODULE = "modwright_plugin_"
"""How the module of a plugin that is given as a file is called, in every process: so it begins."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds plugins that are files by the names of their modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(PLUGIN_MODULE):
            return None
        plugins = importlib.import_module("modwright.core.plugins")
        found: importlib.machinery.ModuleSpec | None = plugins.spec_of_plugin(name)
        return found


sys.meta_path.append(_Finder())
