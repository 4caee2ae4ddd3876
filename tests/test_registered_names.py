"""What is registered is listed nowhere else: metrics, datasets, objectives, each in its package."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import modwright
from modwright.data.registry import datasets
from modwright.metrics.registry import metric_names, old_keys
from modwright.training.objectives.base import OBJECTIVES

SOURCE = Path(modwright.__file__).parent

REGISTERED: dict[str, Callable[[], set[str]]] = {
    "metrics": lambda: {*metric_names(), *old_keys()},
    "data": lambda: {info.name for info in datasets()},
    "training/objectives": lambda: set(OBJECTIVES.names()),
}
"""The package that registers -> the names."""


def texts_in(node: ast.AST) -> set[str]:
    """Texts in a collection that is written out, and in those that stand in it."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return set().union(*map(texts_in, node.elts))
    if isinstance(node, ast.Dict):
        return set().union(*(texts_in(part) for part in (*node.keys, *node.values) if part))
    return set()


def literals(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Collections written out in a file: the line of each, and the texts in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            yield node.lineno, texts_in(node)


def listed(source: Path, package: str, names: set[str]) -> list[str]:
    """Places outside of a package where a collection holds two of the names."""
    return [
        f"{path.relative_to(source)}:{line}: {', '.join(sorted(texts & names))}"
        for path in sorted(source.rglob("*.py"))
        if not path.is_relative_to(source / package)
        for line, texts in literals(ast.parse(path.read_text(encoding="utf-8")))
        if len(texts & names) > 1
    ]


def test_the_search_finds_lists_and_mappings_at_any_depth(tmp_path: Path) -> None:
    lines = (
        "a = ['x', 'y']",
        "b = {'x': 1, 'z': 'y'}",
        "c = f('x'), 'y'",
        "d = [{'k': 'x'}, {'k': 'y'}]",
        "e = {'x': 'x', **{'k': 2}}",
        "f = {'x', *g}, ('z',)",
    )
    (tmp_path / "here").mkdir()
    for file in ("here/own.py", "other.py"):
        (tmp_path / file).write_text("\n".join(lines), encoding="utf-8")
    found = listed(tmp_path, "here", {"x", "y"})
    assert found == ["other.py:1: x, y", "other.py:2: x, y", "other.py:4: x, y"]


@pytest.mark.parametrize("package", REGISTERED)
def test_no_collection_outside_of_the_package_names_two(package: str) -> None:
    names = REGISTERED[package]()
    assert len(names) > 4 and (SOURCE / package).is_dir()
    found = listed(SOURCE, package, names)
    assert not found, "\n".join(found)
