"""The promises to users, and the tests that hold them: ``python tests/promises.py`` prints them.

A test names a promise with ``@pytest.mark.contract("A1")``. Files are read, not run, so this takes
no time.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

__all__ = ["as_markdown", "named_by", "promises"]

HERE = Path(__file__).parent
HEAD = """# Promises

What users of comparable tools break on, and what modwright promises instead. Each promise is held
by tests that name it; `python tests/promises.py` prints this page, and a promise without a test
fails the suite.
"""


def promises() -> dict[str, dict[str, dict[str, str]]]:
    """Section -> id -> what is promised, and where it was seen to go wrong."""
    found: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
        (HERE / "promises.yaml").read_text(encoding="utf-8")
    )
    return found


def named_by() -> dict[str, list[str]]:
    """Promise -> the tests that name it, as ``file::test``."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(HERE.rglob("test_*.py")):
        for test, promise in _marks(ast.parse(file.read_text(encoding="utf-8"))):
            found[promise].append(f"{file.relative_to(HERE).as_posix()}::{test}")
    return dict(found)


def _marks(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from ((node.name, word) for word in _words(decorator))


def _words(decorator: ast.expr) -> list[str]:
    """The arguments of ``pytest.mark.contract(...)``; none for another decorator."""
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return []
    if decorator.func.attr != "contract":
        return []
    return [str(word.value) for word in decorator.args if isinstance(word, ast.Constant)]


def as_markdown() -> str:
    """The page: one table for each section."""
    tests = named_by()
    lines = [HEAD]
    for section, entries in promises().items():
        lines += [f"## {section}", "", "| | promise | seen at | held by |", "|---|---|---|---|"]
        for name, entry in entries.items():
            held = "<br>".join(f"`{test}`" for test in tests.get(name, ()))
            lines.append(f"| {name} | {entry['promise']} | {entry['seen']} | {held} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
