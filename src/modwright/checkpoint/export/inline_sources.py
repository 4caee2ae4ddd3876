"""Gathers the source of some definitions, and of all they use of their package, into one text.

Nothing is rewritten: every class and function stands in the text as it stands in its module. What
the package does not define is imported, what it does is included, and nothing more.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import symtable
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modwright.core.errors import InvalidInputError

__all__ = ["inline_sources"]

_Place = tuple[str, str]
"""Module and name of a definition."""


def inline_sources(
    roots: Iterable[Any], *, packages: Sequence[str] = ("modwright",), without: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """The text of ``roots`` and of everything that they use of ``packages``.

    Where definitions of two modules share a name, the later one gets a suffix.

    Args:
        roots: classes and functions that are defined at the top level of modules.
        packages: top-level packages whose definitions are included; all others are imported.
        without: decorators that are left out, with what only they use.

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
    gathering = _Gathering(packages, without)
    places = [(str(root.__module__), str(root.__name__)) for root in roots]
    for module, name in places:
        if name not in gathering.module(module).definitions:
            raise InvalidInputError(
                f"{module}.{name} is not defined at the top level of its module"
            )
        gathering.take((module, name))
    names = gathering.names()
    pieces = [_import_lines(gathering.imports)]
    for module in gathering.modules_in_order():
        pieces.append(f"# From {module}")
        pieces += [gathering.source(place, names) for place in gathering.taken_from(module)]
    return "\n\n\n".join(pieces) + "\n", tuple(names[place] for place in places)


@dataclass
class _Module:
    """One source file: what it defines, and where its other global names come from."""

    name: str
    lines: list[str]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> _Module:
        try:
            source = inspect.getsource(importlib.import_module(name))
        except (OSError, TypeError):
            raise InvalidInputError(
                f"the source of {name} is not there, so it cannot be exported"
            ) from None
        made = cls(name, source.splitlines())
        for statement in ast.parse(source).body:
            made._note(statement)
        return made

    def _note(self, statement: ast.stmt) -> None:
        match statement:
            case ast.FunctionDef() | ast.ClassDef():
                self.definitions[statement.name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                self.definitions[name] = statement
            case ast.Import(names=names):
                for one in names:
                    self.imports[one.asname or one.name] = (one.name, None)
            case ast.ImportFrom(module=str(home), names=names, level=0):
                for one in names:
                    self.imports[one.asname or one.name] = (home, one.name)
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                for inner in body:
                    self._note(inner)
            case _:
                pass


class _Gathering:
    """Follows names from definition to definition."""

    def __init__(self, packages: Sequence[str], without: Sequence[str]) -> None:
        self.packages, self.without = tuple(packages), frozenset(without)
        self._modules: dict[str, _Module] = {}
        self.taken: dict[_Place, dict[str, _Place]] = {}
        """Definition -> global name in it -> the definition behind that name."""
        self.imports: dict[str, tuple[str, str | None]] = {}

    def module(self, name: str) -> _Module:
        if name not in self._modules:
            self._modules[name] = _Module.read(name)
        return self._modules[name]

    def _is_inside(self, module: str) -> bool:
        return module.partition(".")[0] in self.packages

    def take(self, place: _Place) -> None:
        """Takes a definition and all that it uses."""
        if place in self.taken:
            return
        used = self.taken[place] = {}
        module, name = place
        node = self.module(module).definitions[name]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                home = getattr(inner, "module", None) or inner.names[0].name
                if self._is_inside(home):
                    raise InvalidInputError(f"{module}.{name} imports {home} inside a function")
        for free in sorted(_free_names(self._text(place), node)):
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

    def modules_in_order(self) -> list[str]:
        """The modules that something was taken from, each after those that it uses."""
        uses: dict[str, set[str]] = {}
        for (module, _), used in self.taken.items():
            uses.setdefault(module, set()).update(other for other, _ in used.values())
        order: list[str] = []
        seen: set[str] = set()

        def visit(module: str) -> None:
            if module not in seen:
                seen.add(module)
                for other in sorted(uses[module]):
                    visit(other)
                order.append(module)

        for module in sorted(uses):
            visit(module)
        return order

    def taken_from(self, module: str) -> list[_Place]:
        places = [(module, name) for name in self.module(module).definitions]
        return [place for place in places if place in self.taken]

    def names(self) -> dict[_Place, str]:
        """A name of its own for every definition."""
        names: dict[_Place, str] = {}
        used = set(self.imports)
        for module in self.modules_in_order():
            for place in self.taken_from(module):
                spoken = place[1]
                while spoken in used:
                    spoken = f"{spoken}_{module.rpartition('.')[2]}"
                used.add(spoken)
                names[place] = spoken
        return names

    def _first_line(self, node: ast.stmt) -> int:
        """Where a definition begins, without the decorators that are left out."""
        decorators = getattr(node, "decorator_list", [])
        kept = [d.lineno for d in decorators if _head(d) not in self.without]
        return min([node.lineno, *kept])

    def _text(self, place: _Place, lines: list[str] | None = None) -> str:
        here = self.module(place[0])
        node = here.definitions[place[1]]
        return "\n".join((lines or here.lines)[self._first_line(node) - 1 : node.end_lineno])

    def source(self, place: _Place, names: dict[_Place, str]) -> str:
        """The text of a definition, with the names that definitions have here."""
        module, name = place
        here = self.module(module)
        node, own = here.definitions[name], names[place]
        new = {old: names[found] for old, found in self.taken[place].items()} | {name: own}
        new = {old: now for old, now in new.items() if now != old}
        if clash := _bound_names(node) & (new.keys() - {name}):
            raise InvalidInputError(
                f"{module}.{name} has a name of its own for {sorted(clash)[0]}; rename it"
            )
        lines = list(here.lines)
        for inner in sorted(_names(node), key=lambda n: (n.lineno, -n.col_offset)):
            if inner.id in new:
                lines[inner.lineno - 1] = _spliced(lines[inner.lineno - 1], inner, new[inner.id])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            word = "class" if isinstance(node, ast.ClassDef) else "def"
            at = node.lineno - 1
            lines[at] = lines[at].replace(f"{word} {name}", f"{word} {own}", 1)
        return self._text(place, lines)


def _head(node: ast.expr) -> str:
    """The name that a decorator begins with."""
    return next((n.id for n in ast.walk(node) if isinstance(n, ast.Name)), "")


def _names(node: ast.AST) -> list[ast.Name]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Name)]


def _spliced(line: str, name: ast.Name, new: str) -> str:
    raw = line.encode()
    return (raw[: name.col_offset] + new.encode() + raw[name.end_col_offset :]).decode()


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
    bound |= {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
    inner_definitions = (n for n in ast.walk(node) if n is not node)
    kinds = ast.FunctionDef | ast.ClassDef
    return bound | {inner.name for inner in inner_definitions if isinstance(inner, kinds)}


def _import_lines(imports: dict[str, tuple[str, str | None]]) -> str:
    whole: list[str] = []
    parts: dict[str, list[str]] = {}
    for name, (home, attribute) in sorted(imports.items()):
        if attribute is None:
            whole.append(f"import {home}" + ("" if name == home else f" as {name}"))
        else:
            words = attribute if name == attribute else f"{attribute} as {name}"
            parts.setdefault(home, []).append(words)
    taken = [f"from {home} import {', '.join(words)}" for home, words in sorted(parts.items())]
    return "\n".join([*whole, *taken])
