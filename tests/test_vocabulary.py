"""Names and prose use the field's words: ``tests/data/retired_words.yaml`` lists those given up."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RETIRED = yaml.safe_load((Path(__file__).parent / "data" / "retired_words.yaml").read_text())
KEPT = re.compile("|".join(RETIRED["kept"]), re.MULTILINE)
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+")


def listed(*endings: str) -> list[Path]:
    """The files of the project that hold names or prose, but for this test's own list and data."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    skipped = (
        "tests/data/old",
        "tests/data/rel",
        "tests/data/retired_words.yaml",
        "tests/golden/",
        "tests/faults.yaml",
        "tests/test_vocabulary.py",
    )
    skipped += ("CHANGELOG.md", "docs/reference/renamed.md")
    return [
        ROOT / name
        for name in found.stdout.splitlines()
        if name.endswith(endings) and not name.startswith(skipped) and (ROOT / name).exists()
    ]


def words_of(text: str) -> set[str]:
    return {part.lower() for part in PARTS.findall(text)}


def allowed(path: Path, word: str) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return any(re.search(files, name) for files in RETIRED["exceptions"].get(word, []))


def test_retired_words_are_not_used() -> None:
    wrong = []
    for path in listed(".py", ".md", ".yaml", ".toml", ".html"):
        text = KEPT.sub("", path.read_text(encoding="utf-8"))
        for word in words_of(text) & RETIRED["words"].keys():
            if not allowed(path, word):
                lines = [n for n, line in enumerate(text.splitlines(), 1) if word in words_of(line)]
                wrong.append(f"{path.relative_to(ROOT)}:{lines[0]}: {word} ({len(lines)} lines)")
    assert not wrong, "\n".join(sorted(wrong))


def exported(path: Path) -> Iterator[tuple[str, int]]:
    """Public functions, classes, methods, attributes and parameters that a module defines."""

    def parameters(node: ast.FunctionDef) -> Iterator[tuple[str, int]]:
        everything = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        yield from ((a.arg, node.lineno) for a in everything if a.arg not in ("self", "cls"))

    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node.lineno
            yield from parameters(node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node.lineno
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id, item.lineno
                if isinstance(item, ast.FunctionDef):
                    if item.name == "__init__" or not item.name.startswith("_"):
                        yield from parameters(item)
                    if not item.name.startswith("_"):
                        yield item.name, item.lineno


@pytest.mark.parametrize("package", RETIRED["names"])
def test_packages_export_no_retired_names(package: str) -> None:
    names = set(RETIRED["names"][package])
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "src" / "modwright" / package).rglob("*.py"))
        for name, line in exported(path)
        if name in names and not allowed(path, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_search_sees_parts_of_names(tmp_path: Path) -> None:
    assert words_of("PictureModel, core_in and HTTPTap") == {
        "picture",
        "model",
        "core",
        "in",
        "and",
        "http",
        "tap",
    }
    module = tmp_path / "m.py"
    module.write_text("class A:\n    past: int\n    def f(self, keep): ...\ndef _g(): ...\n")
    assert {name for name, _ in exported(module)} == {"A", "past", "f", "keep"}


def test_renamed_modules_are_where_the_page_says() -> None:
    page = (ROOT / "docs" / "reference" / "renamed.md").read_text()
    rows = re.findall(r"^\| `modwright\.([\w.]+)` \| `modwright\.([\w.]+)`", page, re.MULTILINE)

    def there(name: str) -> bool:
        path = ROOT / "src" / "modwright" / Path(*name.split("."))
        return path.is_dir() or path.with_suffix(".py").is_file()

    assert len(rows) > 80
    assert not [old for old, _ in rows if there(old)]
    assert not [new for _, new in rows if not there(new)]
