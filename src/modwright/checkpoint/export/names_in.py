"""The names that a definition uses, those that it binds, and its text with others."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Mapping, Sequence

from modwright.core.errors import InvalidInputError

__all__ = ["bound_names", "free_names", "names_in", "with_names"]


def with_names(
    lines: Sequence[str], node: ast.stmt, new: Mapping[str, str], said: str
) -> list[str]:
    """Lines of a module in which a definition uses new names.

    Args:
        lines: of the module.
        node: the definition in it.
        new: name, or chain of attributes such as ``helpers.f`` -> what stands there instead.
        said: what messages call the definition.

    Raises:
        InvalidInputError: a name stands where it cannot be replaced.
    """
    found = list(lines)
    chains = [(one, _chain(one)) for one in ast.walk(node)]
    places = [(one, old) for one, old in chains if old in new and isinstance(one, ast.expr)]
    for one, old in sorted(places, key=lambda n: (n[0].lineno, -n[0].col_offset)):
        raw = found[one.lineno - 1].encode()
        start, end = raw[: one.col_offset], raw[one.end_col_offset :]
        if one.lineno != one.end_lineno or raw[len(start) : len(raw) - len(end)] != old.encode():
            raise InvalidInputError(
                f"{said}: {old} needs another name, and in line {one.lineno} it stands in an "
                "f-string, or in two lines; give it a name of its own there"
            )
        found[one.lineno - 1] = (start + new[old].encode() + end).decode()
    return found


def _chain(node: ast.AST) -> str:
    """A name, or attributes of one, as it is written; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def names_in(node: ast.AST) -> list[ast.Name]:
    """All names in a piece of source."""
    return [n for n in ast.walk(node) if isinstance(n, ast.Name)]


def free_names(text: str, node: ast.stmt) -> set[str]:
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
                found |= {name.id for name in names_in(annotation)}
    return found


def bound_names(node: ast.AST) -> set[str]:
    """Names that a definition gives to something itself, or to a global."""
    bound = {n.id for n in names_in(node) if not isinstance(n.ctx, ast.Load)}
    for inner in ast.walk(node):
        match inner:
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if inner is not node:
                bound.add(inner.name)
            case ast.Global(names=names):
                bound.update(names)
            case ast.alias():
                bound.add(inner.asname or inner.name.partition(".")[0])
    return bound
