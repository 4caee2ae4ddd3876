"""Lets transformers' Auto classes find remodeled checkpoints after ``import modwright``.

That import must be quick, without torch. So nothing is built here, and beside what finds plugins
only Python's own modules are imported: once transformers' table of configs exists, its registered
entries are given a look-up that makes "modwright_llama" out of "llama" when it is first asked for,
and that imports an architecture of modwright's own by its type.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modwright.core import plugin_modules as plugin_modules  # they are found from now on

__all__ = ["PREFIX", "watch"]

PREFIX = "modwright_"
_AWAITED = "transformers.models.auto.configuration_auto"


class _Entries(dict[str, Any]):
    """transformers' dictionary of registered configs; remodeled ones are made on demand."""

    def __init__(self, known: dict[str, Any], stock: Any) -> None:
        super().__init__(known)
        self.stock = stock

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        if not isinstance(key, str):
            return False
        if not key.startswith(PREFIX):  # an architecture of modwright's own has a file of its name
            if _is_architecture(key):
                return True
            if key not in getattr(sys.modules.get(_AWAITED), "CONFIG_MAPPING_NAMES", ()):
                from modwright.core.plugins import load_plugins

                load_plugins()  # one of them may bring it
            return super().__contains__(key)
        name = key.removeprefix(PREFIX)
        return not name.startswith(PREFIX) and name in self.stock

    def __missing__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        if not key.startswith(PREFIX):
            if _is_architecture(key):  # it registers itself
                importlib.import_module(f"modwright.models.architectures.{key}")
            return self.get(key)
        from modwright.edits.remodeled import remodeled_config

        self[key] = remodeled_config(self.stock[key.removeprefix(PREFIX)])
        return self[key]


def _is_architecture(model_type: str) -> bool:
    """Whether there is a file for it among the package's own architectures."""
    own = Path(__file__).parent / "models" / "architectures" / f"{model_type}.py"
    return model_type.isidentifier() and own.is_file()


def _extend(module: Any) -> None:
    from modwright.core.compat.transformers import extend_registered_configs

    extend_registered_configs(module.CONFIG_MAPPING, _Entries)


class _Watcher(importlib.abc.MetaPathFinder):
    """Extends the table as soon as its module is run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_extend(module: ModuleType) -> None:
                run(module)
                _extend(module)

            spec.loader.exec_module = run_and_extend  # type: ignore[method-assign]
        return spec


class _SpecUnderWay(importlib.machinery.ModuleSpec):
    """The spec of the awaited module while it runs: the import system marks there when it ends."""

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__["_initializing"])

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        module = sys.modules.get(_AWAITED)
        if not value and hasattr(module, "CONFIG_MAPPING"):
            _extend(module)


def watch() -> None:
    """Extends the table now if it is there, else when it comes."""
    if _AWAITED not in sys.modules:
        sys.meta_path.insert(0, _Watcher())
        return
    module = importlib.import_module(_AWAITED)  # waits for another thread that is importing it
    if hasattr(module, "CONFIG_MAPPING"):
        _extend(module)
    elif module.__spec__ is not None:  # this thread is in the midst of it
        module.__spec__.__class__ = _SpecUnderWay
