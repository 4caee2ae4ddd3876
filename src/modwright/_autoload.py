"""Registers remodelled models with transformers' Auto classes as soon as those are imported.

``import modwright`` must be quick, without torch, and yet be enough for ``AutoModel`` to load an
edited checkpoint. So it waits for the modules that hold the Auto mappings.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["watch"]

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def _register() -> None:
    from modwright.edits.autoclass import register_configs

    register_configs()


def _bring_models() -> None:
    """Whoever imports AutoConfig alone gets the model mappings too: registering needs both."""
    if _MODELS not in sys.modules:
        importlib.import_module(_MODELS)


_AWAITED: dict[str, Callable[[], None]] = {_CONFIGS: _bring_models, _MODELS: _register}


class _Loader(importlib.abc.Loader):
    """A module's own loader, and one thing to do after it."""

    def __init__(self, inner: importlib.abc.Loader, after: Callable[[], None]) -> None:
        self.inner, self.after = inner, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.after()


class _Watcher(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.awaited = dict(_AWAITED)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        after = self.awaited.pop(name, None)
        if after is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, after)
        return spec


def watch() -> None:
    """Registers now if the Auto mappings are there, else when they come."""
    if _MODELS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())
