"""What ``core`` does once is done nowhere else: each rule names a mechanism and where it stands."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "modwright"


@dataclass(frozen=True)
class Rule:
    """A mechanism that stands in one place.

    Attributes:
        name: of the mechanism.
        instead: what to use.
        breaks: whether a piece of syntax is the mechanism.
        home: files, relative to the package, where it stands.
        bad: code that breaks the rule, each a test that it is seen.
        good: code that looks like it and does not.
    """

    name: str
    instead: str
    breaks: Callable[[ast.AST], bool]
    home: tuple[str, ...]
    bad: tuple[str, ...]
    good: tuple[str, ...] = field(default=())


def calls(*names: str, arguments: int | None = None) -> Callable[[ast.AST], bool]:
    """A call of a method or a function of a module: ``calls("write_text", "os.open")``.

    Args:
        names: of methods, or with the module that a function belongs to.
        arguments: how many the call has; any number by default.
    """

    def breaks(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        count = len(node.args) + len(node.keywords)
        if arguments is not None and count != arguments:
            return False
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        return node.func.attr in names or f"{owner}.{node.func.attr}" in names

    return breaks


def imports(*modules: str) -> Callable[[ast.AST], bool]:
    """An import of a module, or of something in it."""

    def is_one(name: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    def breaks(node: ast.AST) -> bool:
        if isinstance(node, ast.Import):
            return any(is_one(alias.name) for alias in node.names)
        return isinstance(node, ast.ImportFrom) and not node.level and is_one(node.module or "")

    return breaks


def either(*rules: Callable[[ast.AST], bool]) -> Callable[[ast.AST], bool]:
    """What breaks one of several rules."""
    return lambda node: any(breaks(node) for breaks in rules)


def names(*starts: str) -> Callable[[ast.AST], bool]:
    """An attribute whose name begins so."""
    return lambda node: isinstance(node, ast.Attribute) and node.attr.startswith(starts)


def reaches(module: str) -> Callable[[ast.AST], bool]:
    """An import of a module, or the module as an attribute of the one around it."""
    package, _, leaf = module.rpartition(".")

    def breaks(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom) and node.module == package:
            return any(alias.name == leaf for alias in node.names)
        return isinstance(node, ast.Attribute) and ast.unparse(node) == module

    return either(imports(module), breaks)


def sets_a_mode(node: ast.AST) -> bool:
    """``model.eval()``, ``model.train()`` and ``model.train(mode)``; a trainer has no mode."""
    if calls("eval", arguments=0)(node):
        return True
    if not calls("train")(node):
        return False
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    keywords = {keyword.arg for keyword in node.keywords}
    owner = node.func.value
    is_trainer = isinstance(owner, ast.Name) and "trainer" in owner.id
    is_super = isinstance(owner, ast.Call) and ast.unparse(owner) == "super()"
    return not is_trainer and not is_super and keywords <= {"mode"} and len(node.args) < 2


RULES = [
    Rule(
        "the mode of a model",
        "core.modes: eval_mode, set_eval, set_mode",
        sets_a_mode,
        ("core/modes.py", "core/subprocess_worker.py"),  # the worker may not import the library
        ("model.eval()", "self.model.train(was)", "build().eval().to(x)", "part.train(mode=True)"),
        ("trainer.train(resume_from_checkpoint=x)", "super().train(mode)", "pandas.eval('x')"),
    ),
    Rule(
        "hooks on modules",
        "core.capture",
        names("register_forward", "register_full_backward", "register_module_"),
        ("core/capture.py",),
        ("part.register_forward_hook(note)", "torch.nn.modules.register_module_forward_hook(x)"),
        ("part.register_buffer('x', x)",),
    ),
    Rule(
        "several processes",
        "core.distributed",
        reaches("torch.distributed"),
        ("core/distributed.py", "core/compat/torch.py"),
        (
            "import torch.distributed as dist",
            "from torch.distributed import all_reduce",
            "from torch import distributed",
            "torch.distributed.barrier()",
        ),
        ("from modwright.core import distributed", "distributed.barrier()"),
    ),
    Rule(
        "names that are near",
        "core.errors: nearest, did_you_mean, unknown_name",
        imports("difflib"),
        ("core/errors.py",),
        ("import difflib", "from difflib import get_close_matches"),
    ),
    Rule(
        "digests",
        "core.digest: sha256_of",
        imports("hashlib"),
        ("core/digest.py",),
        ("import hashlib", "from hashlib import sha256"),
    ),
    Rule(
        "writing a file",
        "core.files: write_file, whole_directory",
        calls("write_text", "write_bytes", "os.replace", "os.rename", "os.open"),
        ("core/files.py",),
        ("path.write_text('x')", "Path(a, b).write_bytes(c)", "os.replace(a, b)", "os.open(a, 0)"),
        ("write_file(path, 'x')", "text.replace('a', 'b')", "path.open()"),
    ),
    Rule(
        "finding files that register themselves",
        "core.registry: Registry",
        imports("pkgutil"),
        ("core/registry.py",),
        ("import pkgutil", "from pkgutil import iter_modules"),
    ),
]


@cache
def trees() -> dict[str, ast.Module]:
    """Every file of the package, by its name relative to it. What docstrings show is text."""
    return {
        file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(SOURCE.rglob("*.py"))
    }


def broken(rule: Rule) -> Iterator[str]:
    for name, tree in trees().items():
        if name not in rule.home:
            lines = {node.lineno for node in ast.walk(tree) if rule.breaks(node)}  # type: ignore[attr-defined]
            yield from (f"{name}:{line}" for line in sorted(lines))


def sees(rule: Rule, code: str) -> bool:
    return any(rule.breaks(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_mechanism_stands_in_one_place(rule: Rule) -> None:
    found = list(broken(rule))
    assert not found, f"{rule.name} is the work of {rule.instead}: {', '.join(found)}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_rules_see_what_they_forbid_and_no_more(rule: Rule) -> None:
    assert set(rule.home) <= set(trees()), "the home of a rule moved"
    assert [code for code in rule.bad if not sees(rule, code)] == []
    assert [code for code in rule.good if sees(rule, code)] == []
    assert all(sees(rule, ast.unparse(trees()[home])) for home in rule.home)
