"""One source file: what it defines at its top level, and where its other global names come from."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from modwright.core.errors import InvalidInputError
from modwright.core.plugin_modules import PLUGIN_MODULE

__all__ = ["Imported", "SourceModule", "is_installed", "short_name"]

_CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault"}
_CHANGES |= {"update"}


class Imported(NamedTuple):
    """What an import statement binds a name to: a module, or an attribute of one."""

    home: str
    attribute: str = ""

    def value(self) -> Any:
        """The object itself.

        Raises:
            ImportError: there is no such thing here.
        """
        module = importlib.import_module(self.home)
        if not self.attribute:
            return module
        try:
            return getattr(module, self.attribute)
        except AttributeError:
            return importlib.import_module(f"{self.home}.{self.attribute}")


class SourceModule:
    """What is said at the top level of a module that was imported.

    Attributes:
        lines: of its source.
        definitions: name -> the statement that defines it.
        imports: name -> what it is bound to.
        loads: modules that ``import a.b`` loads without binding them.
        unclear: name -> why one statement does not say what it is.
        changed: name of a container -> the line that changes it later.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.live: ModuleType = importlib.import_module(name)
        file = getattr(self.live, "__file__", None)
        self.said = name if file is None or name.startswith("modwright.") else Path(file).name
        text = _source(self.live, file)
        self.lines = text.split("\n")
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, Imported] = {}
        self.loads: dict[str, set[str]] = {}
        self.unclear: dict[str, str] = {}
        self.changed: dict[str, int] = {}
        self._note(ast.parse(text).body)

    def is_module(self, name: str) -> bool:
        """Whether a name in it is that of a module in this package."""
        return f"{self.name}.{name}" in sys.modules

    def resolved(self, node: ast.expr) -> Any:
        """The live object behind a name or a chain of attributes; None for any other expression."""
        if isinstance(node, ast.Name):
            return vars(self.live).get(node.id)
        if isinstance(node, ast.Attribute):
            return getattr(self.resolved(node.value), node.attr, None)
        return None

    def _note(self, statements: Sequence[ast.stmt]) -> None:
        before: ast.stmt | None = None
        for statement in statements:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._define(statement.name, statement)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    self._define(name, statement)
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    if value is not None:
                        self._define(name, statement)
                case ast.Import():
                    self._import(statement)
                case ast.ImportFrom():
                    self._import_from(statement)
                case ast.If(
                    test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")
                ):
                    self._note(statement.body)
                    self._note(statement.orelse)
                case _:
                    self._note_rest(statement)
            if before is not None and statement.lineno == before.end_lineno:
                for one in (before, statement):
                    self._blur(one, f"shares line {statement.lineno} with another statement")
            before = statement

    def _define(self, name: str, statement: ast.stmt) -> None:
        if name in self.definitions or name in self.imports:
            self.unclear[name] = f"is defined a second time in line {statement.lineno}"
        self.definitions[name] = statement

    def _import(self, statement: ast.Import) -> None:
        for one in statement.names:
            top = one.name.partition(".")[0]
            self.imports[one.asname or top] = Imported(one.name if one.asname else top)
            if not one.asname and one.name != top:
                self.loads.setdefault(top, set()).add(one.name)

    def _import_from(self, statement: ast.ImportFrom) -> None:
        home = "." * statement.level + (statement.module or "")
        if statement.level:
            home = importlib.util.resolve_name(home, self.live.__package__ or "")
        for one in statement.names:
            if one.name != "*":
                self.imports[one.asname or one.name] = Imported(home, one.name)
                continue
            for name in getattr(sys.modules.get(home), "__all__", ()):
                self.unclear[name] = f"comes from `import *` in line {statement.lineno}"

    def _note_rest(self, statement: ast.stmt) -> None:
        """What stands in a block or changes something; `if __name__ == ...` is not run here."""
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            return
        self._blur(statement, f"is bound by line {statement.lineno}, in a block or with others")
        for node in _in_scope(statement):
            base: Any = None
            if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(
                node.ctx, ast.Load
            ):
                base = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                base = node.func.value if node.func.attr in _CHANGES else None
            while isinstance(base, ast.Attribute | ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name):
                self.changed.setdefault(base.id, node.lineno)

    def _blur(self, statement: ast.stmt, why: str) -> None:
        for node in _in_scope(statement):
            match node:
                case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                    self.unclear.setdefault(name, why)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.unclear.setdefault(name, why)
                case ast.alias() if node.name != "*":
                    self.unclear.setdefault(node.asname or node.name.partition(".")[0], why)


def _in_scope(statement: ast.stmt) -> Iterator[Any]:
    """What belongs to the scope that a statement stands in: not the inside of functions."""
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def _source(module: ModuleType, file: str | None) -> str:
    if file is None and hasattr(module, "__path__"):
        return ""  # a package without a file
    try:
        if file is None or not file.endswith(".py"):
            raise OSError
        with tokenize.open(file) as opened:
            return opened.read()
    except OSError:
        raise InvalidInputError(
            f"the source of {module.__name__} is not there, so it cannot be exported"
        ) from None


def short_name(module: str) -> str:
    """What a module is called in the text: a plugin by its file, whatever folder that lies in.

    Example:
        >>> short_name("modwright_plugin_parts_0a1b2c3d"), short_name("modwright.nn.norms")
        ('parts', 'modwright.nn.norms')
    """
    top, dot, rest = module.partition(".")
    if top.startswith(PLUGIN_MODULE):
        top = top.removeprefix(PLUGIN_MODULE).rpartition("_")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).stem if module == "__main__" and file else top + dot + rest


def is_installed(package: str) -> bool:
    """Whether a top-level module is of Python's library, or was installed with a package.

    Example:
        >>> is_installed("json"), is_installed("torch")
        (True, True)
    """
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return True
    if package.startswith(PLUGIN_MODULE):
        return False
    module = sys.modules.get(package)
    if module is None:
        spec = importlib.util.find_spec(package)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    else:
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    found = next((place for place in places if place is not None), None)
    if found is None:
        return module is None  # a notebook or a console has no file
    return bool({"site-packages", "dist-packages"} & {*Path(found).parts})
