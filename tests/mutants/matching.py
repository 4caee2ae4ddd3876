"""Faults on purpose: where each stands in the source, found by its shape, and what it becomes.

A mutant names a module, a function (or a class) by its qualified name, a pattern and a replacement.
Both are Python, an expression or one statement; names of the form ``_A`` stand for anything and
mean the same in the replacement: ``torch.cat([-_B, _A], dim=-1)``. So a mutant outlives new line
numbers, other formatting and other names of variables.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Mutant", "load", "mutated", "probed"]

WILDCARD = re.compile(r"_[A-Z]")
IGNORED = {"ctx", "type_comment", "kind"}
Bound = dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        id: a short name.
        module: the file below the package, without its ending: ``nn/norms``.
        function: qualified name inside the module: ``RMSNorm.forward``.
        find: the pattern; exactly one node of the function must match it.
        replace: what stands in its place.
        breaks: one sentence: what is wrong then.
    """

    id: str
    module: str
    function: str
    find: str
    replace: str
    breaks: str

    @property
    def package(self) -> str:
        return self.module.partition("/")[0]

    @property
    def path(self) -> str:
        """The file, below the directory that holds the package."""
        return f"modwright/{self.module}.py"


def load(folder: Path = Path(__file__).parent) -> list[Mutant]:
    """The mutants of all files of a folder."""
    return [
        Mutant(**entry)
        for path in sorted(folder.glob("*.yaml"))
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def mutated(source: str, mutant: Mutant) -> str:
    """The source of the module with the fault in it.

    Raises:
        ValueError: the pattern does not match exactly one node.
    """
    node, bound = _only_match(source, mutant)
    new = _parsed(mutant.replace)
    text = ast.unparse(ast.fix_missing_locations(_Filled(bound).visit(new)))
    return _spliced(source, node, f"({text})" if isinstance(node, ast.expr) else text)


def probed(source: str, mutants: list[Mutant]) -> str:
    """The source of the module with a call at each mutant's node that tells that it was reached."""
    inserted: list[tuple[int, str]] = []
    for mutant in mutants:
        node, _ = _only_match(source, mutant)
        start, end = _span(source, node)
        call = f"__import__('mutants_probe').reached({mutant.id!r})"
        if isinstance(node, ast.expr):
            inserted += [(start, f"({call} or ("), (end, "))")]
        else:
            inserted.append((start, f"{call}\n{' ' * node.col_offset}"))
    for position, text in sorted(inserted, reverse=True):
        source = source[:position] + text + source[position:]
    return source


# Matching


def _parsed(text: str) -> Any:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        (statement,) = ast.parse(text).body
        return statement


def _only_match(source: str, mutant: Mutant) -> tuple[Any, Bound]:
    pattern, matches = _parsed(mutant.find), []
    scopes = list(_scopes(ast.parse(source), mutant.function.split(".")))
    if not scopes:
        raise ValueError(f"{mutant.id}: {mutant.path} has no {mutant.function}")
    for node in (node for scope in scopes for node in ast.walk(scope)):
        bound: Bound = {}
        if _matches(pattern, node, bound):
            matches.append((node, bound))
    if len(matches) != 1:
        raise ValueError(
            f"{mutant.id}: {len(matches)} nodes of {mutant.function} in {mutant.path} match"
            f" {mutant.find!r}; exactly one must"
        )
    return matches[0]


def _scopes(node: ast.AST, names: list[str]) -> Iterator[ast.AST]:
    """The definitions of that qualified name: a property has one of each accessor."""
    if not names:
        yield node
        return
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, kinds):
            if inner.name == names[0]:
                yield from _scopes(inner, names[1:])
        elif isinstance(inner, ast.stmt):
            yield from _scopes(inner, names)


def _matches(pattern: Any, node: Any, bound: Bound) -> bool:
    """Whether a part of a tree has the shape of the pattern; ``bound`` learns its wildcards."""
    name = pattern.id if isinstance(pattern, ast.Name) else pattern
    if isinstance(name, str) and WILDCARD.fullmatch(name) and isinstance(node, ast.expr | str):
        return _text(bound.setdefault(name, node)) == _text(node)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(
            _matches(a, b, bound) for a, b in zip(pattern, node)
        )
    if isinstance(pattern, ast.AST):
        return all(
            _matches(getattr(pattern, field, None), getattr(node, field, None), bound)
            for field in pattern._fields
            if field not in IGNORED
        )
    return bool(pattern == node)


def _text(bound: Any) -> str:
    return bound if isinstance(bound, str) else ast.unparse(bound)


class _Filled(ast.NodeTransformer):
    """Puts what the wildcards stand for in their place."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound

    def visit_Name(self, node: ast.Name) -> ast.AST:
        bound = self._bound.get(node.id)
        if isinstance(bound, ast.AST):
            bound = copy.deepcopy(bound)
            if hasattr(bound, "ctx"):
                bound.ctx = node.ctx  # type: ignore[attr-defined]
            return bound
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field, value in ast.iter_fields(node):
            if isinstance(value, str) and value in self._bound:
                setattr(node, field, self._bound[value])
        return super().generic_visit(node)


# Writing


def _offset(source: str, line: int, column: int) -> int:
    """Position in the text; columns of the parser count bytes."""
    lines = source.split("\n")
    return sum(len(text) + 1 for text in lines[: line - 1]) + len(
        lines[line - 1].encode()[:column].decode()
    )


def _span(source: str, node: Any) -> tuple[int, int]:
    start = _offset(source, node.lineno, node.col_offset)
    end = _offset(source, node.end_lineno, node.end_col_offset)
    if ast.dump(_parsed_alone(source[start:end], node)) != ast.dump(node):
        raise ValueError(f"line {node.lineno}: what stands inside a formatted string has no place")
    return start, end


def _parsed_alone(text: str, node: Any) -> ast.AST:
    try:
        found = ast.parse(f"({text})" if isinstance(node, ast.expr) else text).body[0]
    except SyntaxError:
        return ast.Pass()
    return found.value if isinstance(node, ast.expr) and isinstance(found, ast.Expr) else found


def _spliced(source: str, node: Any, text: str) -> str:
    start, end = _span(source, node)
    indented = text.replace("\n", "\n" + " " * node.col_offset)
    return source[:start] + indented + source[end:]
