"""What another process must be told to know what is registered here."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.core.plugins import GUARD, VARIABLE, is_of_plugin, load_plugins, plugin_names
from modwright.core.registry import Origin, Registry

__all__ = ["Handover", "handover"]


@dataclass(frozen=True)
class Handover:
    """What another process is told.

    Attributes:
        plugins: as ``MODWRIGHT_PLUGINS`` names them there.
        folders: where modules are looked for there, after all other folders.
        unknown: for each entry that no process can be told of, why, in a line.
    """

    plugins: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """What the environment of the process says."""
        return {VARIABLE: os.pathsep.join(self.plugins)}


def handover(used: Collection[str] | None = None) -> Handover:
    """What a process must be told to know the plugins, and what ordinary code registered.

    A test, a script or a module that was imported in the ordinary way is a plugin there. A module
    inside of a package goes by its name, anything else by its file.

    Args:
        used: names of entries; code that registered none of them is left out. All by default.

    Example:
        >>> handover(used=())
        Handover(plugins=(), folders=(), unknown=())
    """
    load_plugins()
    names, unknown = plugin_names(), []
    for registry in Registry.every():
        for name, origin in registry.outside().items():
            if is_of_plugin(origin) or (used is not None and name not in used):
                continue
            told = _as_plugin(origin)
            if told is not None and told not in names:
                names.append(told)
            if why := _why_unknown(origin, told):
                unknown.append(f"{registry.what} {name!r} {why}")
    folders = [str(Path(entry).absolute()) for entry in sys.path] if names else []
    return Handover(tuple(names), tuple(folders), tuple(unknown))


def _as_plugin(origin: Origin) -> str | None:
    spec: Any = getattr(sys.modules.get(origin.module), "__spec__", None)
    if origin.file is None or (origin.module == "__main__" and not _is_guarded(origin.file)):
        return None
    in_package = spec is not None and spec.parent
    return str(spec.name if in_package else origin.file)


def _why_unknown(origin: Origin, told: str | None) -> str:
    """Why another process does not know what this code registered; empty where it does."""
    if origin.file is None:
        return "is registered by code that is in no file; write it into one"
    if told is None:
        return (
            f"is registered by {origin.file.name}, which would do its work again in the new "
            f"process; put the work below `{GUARD}`"
        )
    if not origin.on_import:
        return (
            f"is registered by a function of {origin.file.name}; a new process knows what a file "
            "registers when it is imported"
        )
    return ""


def _is_guarded(script: Path) -> bool:
    """Whether what the script is doing now is not done when it is imported."""
    frame: Any = inspect.currentframe()
    while frame is not None and not (
        frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_name == "<module>"
    ):
        frame = frame.f_back
    if frame is None:
        return True
    for node in ast.parse(script.read_bytes()).body:
        if node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
            return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    return False
