"""Gathers the source of some definitions, and of all they use of their package, into one text."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import symtable
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from modwright.core.errors import InvalidInputError

__all__ = ["inline_sources"]

_Place = tuple[str, str]
"""Module and name of a definition."""


def inline_sources(
    roots: Iterable[Any],
    *,
    packages: Sequence[str] = ("modwright",),
    without: Sequence[str] = ("component",),
    tables: Mapping[_Place, Mapping[str, Any]] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """The text of ``roots`` and of everything that they use of ``packages``, and nothing more.

    Every class and function stands there as in its module; where definitions of two modules share a
    name, the later one gets a suffix.

    Args:
        roots: classes and functions that are defined at the top level of modules.
        packages: top-level packages whose definitions are included; all others are imported.
        without: decorators that are left out, with what only they use.
        tables: (module, name) of a registry -> what of it is needed, classes and functions by their
            names in it; it is a plain dictionary in the text.

    Returns:
        The text, which begins with its imports, and the name of each root in it.

    Raises:
        InvalidInputError: a source is not there, or uses what cannot be taken along.

    Example:
        >>> from modwright.nn import ZeroModule
        >>> text, names = inline_sources([ZeroModule])
        >>> names
        ('ZeroModule',)
        >>> "class ZeroModule(nn.Module):" in text and "from torch import Tensor, nn" in text
        True
    """
    gathering = _Gathering(packages, without, tables or {})
    places = [gathering.take_root(root) for root in roots]
    names = gathering.names()
    pieces, home = [_import_lines(gathering.imports)], ""
    for place in names:
        if place[0] != home:
            home = place[0]
            pieces.append(f"# From {home}")
        pieces.append(gathering.source(place, names))
    return "\n\n\n".join(pieces) + "\n", tuple(names[place] for place in places)


class _Module:
    """One source file: what it defines, and where its other global names come from."""

    def __init__(self, name: str) -> None:
        try:
            source = inspect.getsource(importlib.import_module(name))
        except (OSError, TypeError):
            raise InvalidInputError(
                f"the source of {name} is not there, so it cannot be exported"
            ) from None
        self.lines = source.splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self._note(ast.parse(source).body)

    def _note(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.FunctionDef() | ast.ClassDef():
                    self.definitions[statement.name] = statement
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    self.definitions[name] = statement
                case ast.Import(names=names):
                    self.imports |= {one.asname or one.name: (one.name, None) for one in names}
                case ast.ImportFrom(module=str(home), names=names, level=0):
                    self.imports |= {one.asname or one.name: (home, one.name) for one in names}
                case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                    self._note(body)


class _Gathering:
    """Follows names from definition to definition."""

    def __init__(
        self,
        packages: Sequence[str],
        without: Sequence[str],
        tables: Mapping[_Place, Mapping[str, Any]],
    ) -> None:
        self.packages, self.without, self.tables = packages, without, tables
        self.module = cache(_Module)
        self.taken: dict[_Place, dict[str, _Place]] = {}
        """Definition -> global name in it -> the definition behind that name."""
        self.imports: dict[str, tuple[str, str | None]] = {}

    def _is_inside(self, module: str) -> bool:
        return module.partition(".")[0] in self.packages

    def take_root(self, root: Any) -> _Place:
        """Takes a class or a function; says where it is defined."""
        module, name = str(root.__module__), str(root.__name__)
        if name not in self.module(module).definitions:
            raise InvalidInputError(
                f"{module}.{name} is not defined at the top level of its module"
            )
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
        node = self.module(module).definitions[name]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                home = getattr(inner, "module", None) or inner.names[0].name
                if self._is_inside(home):
                    raise InvalidInputError(f"{module}.{name} imports {home} inside a function")
        for free in sorted(_free_names(self._text(node, self.module(module).lines), node)):
            found = self._find(module, free)
            if found is not None:
                used[free] = found
                self.take(found)

    def _find(self, module: str, name: str) -> _Place | None:
        """The definition behind a global name; None for what comes from outside."""
        here = self.module(module)
        if name in here.definitions:
            return (module, name)
        home, attribute = here.imports.get(name, ("", None))
        if not home:
            if hasattr(builtins, name) or name == "__name__":
                return None
            raise InvalidInputError(
                f"{module} uses {name!r}, which is not defined at its top level"
            )
        if not self._is_inside(home):
            known = self.imports.setdefault(name, (home, attribute))
            if known != (home, attribute):
                raise InvalidInputError(
                    f"{name!r} is {known} in one module, {(home, attribute)} in {module}"
                )
            return None
        if attribute is None:
            raise InvalidInputError(
                f"{module} imports the module {home} whole; import names from it"
            )
        return self._find(home, attribute)

    def names(self) -> dict[_Place, str]:
        """A name of its own for every definition, each module's after those that it uses."""
        uses: dict[str, set[str]] = {}
        for (module, _), used in self.taken.items():
            uses.setdefault(module, set()).update(other for other, _ in used.values())
        names: dict[_Place, str] = {}
        spoken, seen = set(self.imports), set()

        def visit(module: str) -> None:
            if module in seen:
                return
            seen.add(module)
            for other in sorted(uses[module]):
                visit(other)
            for name in self.module(module).definitions:
                if (module, name) in self.taken:
                    own = name
                    while own in spoken:
                        own = f"{own}_{module.rpartition('.')[2]}"
                    spoken.add(own)
                    names[module, name] = own

        for module in sorted(uses):
            visit(module)
        return names

    def _text(self, node: ast.stmt, lines: list[str]) -> str:
        """The lines of a definition, without the decorators that are left out."""
        decorators = getattr(node, "decorator_list", [])
        kept = [d.lineno for d in decorators if _names(d)[0].id not in self.without]
        return "\n".join(lines[min([node.lineno, *kept]) - 1 : node.end_lineno])

    def source(self, place: _Place, names: dict[_Place, str]) -> str:
        """The text of a definition, with the names that definitions have here."""
        module, name = place
        if place in self.tables:
            entries = (f"{key!r}: {names[found]}" for key, found in self.taken[place].items())
            return f"{names[place]} = {{{', '.join(entries)}}}"
        lines = list(self.module(module).lines)
        node, own = self.module(module).definitions[name], names[place]
        new = {old: names[found] for old, found in self.taken[place].items()} | {name: own}
        new = {old: now for old, now in new.items() if now != old}
        if clash := _bound_names(node) & (new.keys() - {name}):
            raise InvalidInputError(
                f"{module}.{name} has a name of its own for {sorted(clash)[0]}; rename it"
            )
        for inner in sorted(_names(node), key=lambda n: (n.lineno, -n.col_offset)):
            if inner.id in new:
                raw = lines[inner.lineno - 1].encode()
                start, end = raw[: inner.col_offset], raw[inner.end_col_offset :]
                lines[inner.lineno - 1] = (start + new[inner.id].encode() + end).decode()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            word = "class" if isinstance(node, ast.ClassDef) else "def"
            at = node.lineno - 1
            lines[at] = lines[at].replace(f"{word} {name}", f"{word} {own}", 1)
        return self._text(node, lines)


def _names(node: ast.AST) -> list[ast.Name]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Name)]


def _free_names(text: str, node: ast.stmt) -> set[str]:
    """Names that a definition takes from its module: in its code, and in its annotations."""
    found: set[str] = set()
    tables = [symtable.symtable(text, "definition", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        at_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            outside = not symbol.is_assigned() if at_top else symbol.is_global()
            if symbol.is_referenced() and outside:
                found.add(symbol.get_name())
    for inner in ast.walk(node):
        for place in ("annotation", "returns"):
            annotation = getattr(inner, place, None)
            if isinstance(annotation, ast.expr):
                found |= {name.id for name in _names(annotation)}
    return found


def _bound_names(node: ast.AST) -> set[str]:
    """Names that a definition gives to something itself."""
    bound = {n.id for n in _names(node) if not isinstance(n.ctx, ast.Load)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.arg):
            bound.add(inner.arg)
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef) and inner is not node:
            bound.add(inner.name)
    return bound


def _import_lines(imports: dict[str, tuple[str, str | None]]) -> str:
    whole: list[str] = []
    parts: dict[str, list[str]] = {}
    for name, (home, attribute) in sorted(imports.items()):
        words = attribute or home
        if name != words:
            words += f" as {name}"
        (whole if attribute is None else parts.setdefault(home, [])).append(words)
    lines = [f"import {words}" for words in whole]
    lines += [f"from {home} import {', '.join(words)}" for home, words in sorted(parts.items())]
    return "\n".join(lines)
