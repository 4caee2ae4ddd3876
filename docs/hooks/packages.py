"""The API: one page per room, with every name that a module lists in its ``__all__``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["MAKERS", "navigation", "pages"]

SOURCE = Path(__file__).parents[2] / "src"
FOLDER = "reference/api"
# The command line has a page of its own; it is no library.
NOT_SHOWN = {"cli"}


def navigation() -> list[dict[str, str]]:
    """A page per room."""
    return [{room.name: _path(room)} for room in _packages()]


def pages() -> dict[str, str]:
    """Path in docs -> text."""
    return {_path(room): _page(room) for room in _packages()}


@cache
def _package() -> Any:
    import griffe

    return griffe.load("modwright", search_paths=[SOURCE])


def _packages() -> list[Any]:
    return [room for room in _public_modules(_package()) if room.name not in NOT_SHOWN]


def _public_modules(module: Any) -> list[Any]:
    """Modules inside this one; what it only imports is an alias."""
    found = [m for m in module.members.values() if not m.is_alias and m.is_module]
    return sorted((m for m in found if not m.name.startswith("_")), key=lambda m: m.name)


def _path(room: Any) -> str:
    return f"{FOLDER}/{room.name}.md"


def _exports(module: Any) -> list[str]:
    return [str(name) for name in module.exports or () if str(name) in module.members]


def _own(module: Any) -> list[str]:
    """What is public and written here; what is re-exported is documented where it is defined."""
    return [name for name in _exports(module) if not module.members[name].is_alias]


def _page(room: Any) -> str:
    own = _exports(room)
    lines = [_anchor(room), f"# {room.path}", "", _docstring(room), ""]
    if own:
        where = f"from `{room.path}`" if room.is_init_module else "names"
        lines += [f"## What to import {where}", "", *_members(room.path, own)]
    for module in _inside(room):
        # Names that the room itself hands out stand above.
        rest = [name for name in _own(module) if not _is_exported(room, module, name)]
        if rest:
            lines += [_anchor(module), f"## {module.path}", "", _docstring(module), ""]
            lines += _members(module.path, rest)
        else:
            lines[0:0] = [_anchor(module)]
    return "\n".join(lines) + "\n"


def _anchor(module: Any) -> str:
    """A place that `[text][modwright.room.module]` leads to: the heading below it."""
    return f"[](){{ #{module.path} }}"


def _inside(module: Any) -> list[Any]:
    found = []
    for inner in _public_modules(module):
        found += [inner, *_inside(inner)]
    return found


def _is_exported(room: Any, module: Any, name: str) -> bool:
    mine = room.members.get(name) if name in _exports(room) else None
    return mine is not None and mine.is_alias and mine.target_path == f"{module.path}.{name}"


def _members(path: str, names: list[str]) -> list[str]:
    # A name of its own for each, so that the page can be searched by name.
    lines: list[str] = []
    for name in names:
        lines += [f"::: {path}.{name}", ""]
    return lines


def _docstring(module: Any) -> str:
    return module.docstring.value if module.docstring else ""


def _list() -> str:
    rows = [
        f"| [`{room.path}`]({room.name}.md) | {_docstring(room).splitlines()[0]} |"
        for room in _packages()
    ]
    return "\n".join(["| room | what it holds |", "|---|---|", *rows])


MAKERS = {"packages": _list}
