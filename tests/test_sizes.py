"""Nothing is too large to read: files, function bodies, and what a constructor takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import modwright

SOURCE = Path(modwright.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LINES, ARGUMENTS, BODY = 400, 8, 60


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement to the last; the docstring is none."""
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES
    for node in functions(path):
        assert body_lines(node) <= BODY, f"{node.name} has a long body"
        if node.name == "__init__":
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]
            assert len(taken) <= ARGUMENTS, f"line {node.lineno}: a constructor of {len(taken)}"
