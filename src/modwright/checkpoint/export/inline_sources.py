"""Gathers the source of some definitions, and of all they use of their package, into one text."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from modwright.checkpoint.export.names_in import bound_names, free_names, names_in, with_names
from modwright.checkpoint.export.source_module import (
    Imported,
    SourceModule,
    is_installed,
    short_name,
)
from modwright.core.errors import InvalidInputError
from modwright.core.registry import Registry

__all__ = ["inline_sources"]

_Place = tuple[str, str]
"""Module and name of a definition."""


class _Outside(NamedTuple):
    """Something that the text imports, and what it is called there if it can be."""

    imported: Imported
    name: str


_Found = _Place | _Outside


def inline_sources(
    roots: Iterable[Any],
    *,
    packages: Collection[str] = ("modwright",),
    without: Sequence[Any] = (),
    tables: Mapping[_Place, Mapping[str, Any]] | None = None,
    said: Mapping[int, str] | None = None,
    reserved: Collection[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """The text of ``roots`` and of everything that they use of ``packages``, and nothing more.

    Every class and function stands there as in its module; where definitions of two modules share a
    name, the later one gets a suffix. Modules that are nobody's package, such as files beside a
    plugin, are taken along as ``packages`` are. What was installed is imported.

    Args:
        roots: classes and functions that are defined at the top level of modules.
        packages: top-level packages whose definitions are included.
        without: functions that register; decorators that call them are left out.
        tables: (module, name) of a registry -> what of it is needed, classes and functions by their
            names in it; it is a plain dictionary in the text.
        said: index of a root -> what messages call it.
        reserved: names that the text gives to nothing.

    Returns:
        The text, which begins with its imports, and the name of each root in it.

    Raises:
        InvalidInputError: a source is not there, or uses what cannot be taken along.

    Example:
        >>> from modwright.nn import ZeroModule
        >>> from modwright.nn.component import component
        >>> text, names = inline_sources([ZeroModule], without=[component])
        >>> names
        ('ZeroModule',)
        >>> "class ZeroModule(nn.Module):" in text and "from torch import Tensor, nn" in text
        True
    """
    gathering = _Gathering(packages, without, tables or {}, {*reserved, *dir(builtins)})
    found = []
    for index, root in enumerate(roots):
        told = (said or {}).get(index, "")
        try:
            found.append(gathering.take_root(root))
        except InvalidInputError as error:
            raise InvalidInputError(f"{told}: {error}" if told else str(error)) from None
    names = gathering.names()
    pieces, home = [_import_lines(gathering.imports(names))], ""
    for place in names:
        if isinstance(place, _Outside):
            continue
        if place[0] != home:
            home = place[0]
            pieces.append(f"# From {short_name(home)}")
        pieces.append(gathering.source(place, names))
    return "\n\n\n".join(pieces) + "\n", tuple(names[place] for place in found)


class _Gathering:
    """Follows names from definition to definition."""

    def __init__(
        self,
        packages: Collection[str],
        without: Sequence[Any],
        tables: Mapping[_Place, Mapping[str, Any]],
        reserved: set[str],
    ) -> None:
        self.packages, self.without, self.tables = packages, without, tables
        self.reserved = reserved
        self.module = cache(SourceModule)
        self.taken: dict[_Place, dict[str, _Found]] = {}
        """Definition -> global name in it, or a chain such as ``helpers.f`` -> what is behind."""
        self.outside: list[tuple[_Outside, Any]] = []
        self.loads: dict[str, set[str]] = {}

    def _is_inside(self, module: str) -> bool:
        top = module.partition(".")[0]
        return top in self.packages or not is_installed(top)

    def take_root(self, root: Any) -> _Found:
        """Takes a class or a function; says where it is defined."""
        if (unnamed := _unnamed(root)) is not None:
            raise InvalidInputError(
                f"{unnamed} makes it, whose source cannot be taken along; write a class or a "
                "function at the top level of a file"
            )
        module, name = str(root.__module__), str(root.__qualname__)
        if not self._is_inside(module):
            found = self._import(Imported(module, name), name)
            if found is None:
                raise InvalidInputError(f"{module}.{name} cannot be imported")
            return found
        here = self.module(module)
        if name in here.unclear:
            self._find(module, name)  # refuses it
        if name not in here.definitions or vars(here.live).get(name) is not root:
            raise InvalidInputError(f"{name} is not defined at the top level of {here.said}")
        self.take((module, name))
        return module, name

    def take(self, place: _Place) -> None:
        """Takes a definition and all that it uses."""
        if place in self.taken:
            return
        used = self.taken[place] = {}
        if place in self.tables:
            used |= {key: self.take_root(root) for key, root in self.tables[place].items()}
            return
        module, name = place
        here = self.module(module)
        node = here.definitions[name]
        self._check(here, name, node)
        for free in sorted(free_names(self._text(node, here, here.lines), node)):
            target = self._find(module, free)
            if isinstance(target, str):
                used |= dict(self._inside_of(target, free, node, here))
            elif target is not None:
                used[free] = target
        for free, found in used.items():
            if not isinstance(found, _Outside):
                self._check_no_registry(found, free, name, here)
                self.take(found)

    def _check(self, here: SourceModule, name: str, node: ast.stmt) -> None:
        """Refuses what would not be the same in the text."""
        if name in here.changed and isinstance(node, ast.Assign | ast.AnnAssign):
            raise InvalidInputError(
                f"{name} of {here.said} is changed after it is defined, in line "
                f"{here.changed[name]}; say it in one statement"
            )
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                level = getattr(inner, "level", 0)
                home = getattr(inner, "module", None) or inner.names[0].name
                if level or self._is_inside(home):
                    raise InvalidInputError(
                        f"{name} of {here.said} imports {'.' * level}{home} inside a function; "
                        "import it at the top"
                    )

    def _check_no_registry(self, found: _Place, free: str, name: str, here: SourceModule) -> None:
        live = vars(self.module(found[0]).live).get(found[1])
        if found not in self.tables and (isinstance(live, Registry) or self._is_left_out(live)):
            raise InvalidInputError(
                f"{name} of {here.said} uses {free}, and names are registered with modwright only; "
                "use classes and functions themselves, and the decorator right where they are"
            )

    def _is_left_out(self, live: Any) -> bool:
        return inspect.isroutine(live) and any(live == one for one in self.without)

    def _find(self, module: str, name: str) -> _Found | str | None:
        """What is behind a global name: a definition, something to import, the name of a module
        whose definitions are taken along; None for what is everywhere."""
        here = self.module(module)
        if name in here.unclear:
            raise InvalidInputError(
                f"{name} of {here.said} {here.unclear[name]}; define or import it in a statement "
                "of its own at the top level"
            )
        if name in here.definitions:
            return (module, name)
        if name in here.imports:
            return self._imported(here.imports[name], name, here)
        if here.is_module(name):
            return f"{module}.{name}"
        if hasattr(builtins, name) or name == "__name__":
            return None
        if name == "__file__":
            raise InvalidInputError(
                f"{here.said} looks for files beside it (__file__), which are not taken along"
            )
        raise InvalidInputError(f"{here.said} uses {name!r}, which is not defined at its top level")

    def _imported(self, imported: Imported, name: str, here: SourceModule) -> _Found | str | None:
        if self._is_inside(imported.home):
            return self._find(*imported) if imported.attribute else imported.home
        found = self._import(imported, name)
        if found is not None and not found.imported.attribute:
            self.loads.setdefault(found.imported.home, set()).update(here.loads.get(name, ()))
        return found

    def _import(self, imported: Imported, name: str) -> _Outside | None:
        """Something that is imported; None where only annotations name what is not here."""
        try:
            value = imported.value()
        except ImportError:
            return None
        same = isinstance(value, ModuleType | type) or inspect.isroutine(value)
        for known, other in self.outside:
            if (same and other is value) or known == _Outside(imported, name):
                return known
        self.outside.append((_Outside(imported, name), value))
        return self.outside[-1][0]

    def _inside_of(
        self, target: str, name: str, node: ast.stmt, here: SourceModule
    ) -> Iterator[tuple[str, _Found]]:
        """What is used of a module that is imported whole: ``helpers.f``, ``package.helpers.f``."""
        parents = {id(one.value): one for one in ast.walk(node) if isinstance(one, ast.Attribute)}
        for one in names_in(node):
            if one.id != name:
                continue
            found: _Found | str | None = target
            chain, outer = name, parents.get(id(one))
            while isinstance(found, str) and outer is not None:
                found = self._find(found, outer.attr)
                chain, outer = f"{chain}.{outer.attr}", parents.get(id(outer))
            if found is None or isinstance(found, str):
                raise InvalidInputError(
                    f"{here.said} uses the module {chain} as a whole; import names from it"
                )
            yield chain, found

    def names(self) -> dict[_Found, str]:
        """A name of its own for all there is, each module's definitions after those it uses."""
        uses: dict[str, set[str]] = {}
        for (module, _), used in self.taken.items():
            others = (found for found in used.values() if not isinstance(found, _Outside))
            uses.setdefault(module, set()).update(other for other, _ in others)
        order: list[_Place] = []
        seen: set[str] = set()

        def visit(module: str) -> None:
            if module in seen:
                return
            seen.add(module)
            for other in sorted(uses[module]):
                visit(other)
            order.extend(
                (module, name)
                for name in self.module(module).definitions
                if (module, name) in self.taken
            )

        for module in sorted(uses):
            visit(module)
        spoken = set(self.reserved)
        given: dict[_Found, str] = {}

        def give(found: _Found, own: str, home: str) -> None:
            while own in spoken:
                own = f"{own}_{short_name(home).rpartition('.')[2]}"
            spoken.add(own)
            given[found] = own

        for outside, _ in self.outside:
            give(outside, outside.name, outside.imported.home)
        own_first = sorted(order, key=lambda place: not place[0].startswith("modwright."))
        for module, name in own_first:
            give((module, name), name, module)
        everything: list[_Found] = [one for one, _ in self.outside]
        everything += order
        return {found: given[found] for found in everything}

    def imports(self, names: Mapping[_Found, str]) -> list[tuple[str, Imported]]:
        """What the text imports, by its name there; what is only loaded stands under its own."""
        bound = [(names[outside], outside.imported) for outside, _ in self.outside]
        loaded = {name for found in self.loads.values() for name in found}
        return [*bound, *((name, Imported(name)) for name in loaded)]

    def _text(self, node: ast.stmt, here: SourceModule, lines: Sequence[str]) -> str:
        """The lines of a definition, without the decorators that are left out."""
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(one.lineno for one in decorators)])
        gone = {
            line
            for one in decorators
            if self._registers(one, here)
            for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)
        }
        kept = range(start, (node.end_lineno or node.lineno) + 1)
        return "\n".join(lines[line - 1] for line in kept if line not in gone)

    def _registers(self, decorator: ast.expr, here: SourceModule) -> bool:
        """Whether a decorator calls one of those that are left out, whatever it is called here."""
        while isinstance(decorator, ast.Call):
            if any(self._registers(one, here) for one in decorator.args):
                return True  # functools.partial(component, kind=...)
            decorator = decorator.func
        live = here.resolved(decorator)
        while isinstance(live, functools.partial):
            live = live.func
        return self._is_left_out(live)

    def source(self, place: _Place, names: Mapping[_Found, str]) -> str:
        """The text of a definition, with the names that all has here."""
        module, name = place
        if place in self.tables:
            entries = (f"{key!r}: {names[found]}" for key, found in self.taken[place].items())
            return f"{names[place]} = {{{', '.join(entries)}}}"
        here = self.module(module)
        node, own = here.definitions[name], names[place]
        new = {old: names[found] for old, found in self.taken[place].items()} | {name: own}
        new = {old: now for old, now in new.items() if now != old}
        bound = bound_names(node)
        for old, now in new.items():
            base = old.partition(".")[0]
            if (base in bound and old != name) or now in bound - {name}:
                raise InvalidInputError(
                    f"{name} of {here.said} has a name of its own for {base}; rename it"
                )
        lines = with_names(here.lines, node, new, f"{name} of {here.said}")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            word = "class" if isinstance(node, ast.ClassDef) else "def"
            at = node.lineno - 1
            lines[at] = lines[at].replace(f"{word} {name}", f"{word} {own}", 1)
        return self._text(node, here, lines)


def _unnamed(root: Any) -> str | None:
    """What a root is that no file has a name for; None for a class or a function of a file."""
    name = getattr(root, "__qualname__", None)
    if isinstance(root, functools.partial):
        return "a functools.partial"
    if name is None or not (isinstance(root, type) or inspect.isroutine(root)):
        return f"an object of the class {type(root).__name__}"
    if name.endswith("<lambda>"):
        return "a lambda"
    if inspect.ismethod(root) or "." in name:
        what = "class" if isinstance(root, type) else "function"
        return f"a {what} inside of {name.partition('.')[0]}"
    return None


def _import_lines(imports: Iterable[tuple[str, Imported]]) -> str:
    whole: list[str] = []
    parts: dict[str, list[str]] = {}
    for name, (home, attribute) in sorted(imports):
        words = attribute or home
        if name != words:
            words += f" as {name}"
        (parts.setdefault(home, []) if attribute else whole).append(words)
    lines = [f"import {words}" for words in whole]
    lines += [f"from {home} import {', '.join(words)}" for home, words in sorted(parts.items())]
    return "\n".join(lines)
