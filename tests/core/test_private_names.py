"""Private names of other libraries are read in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import transformers
from torch import nn

import modwright

SOURCE = Path(modwright.__file__).parent
ALLOWED = {
    "core/compat/torch.py",
    "core/compat/transformers.py",
    "core/compat/tools.py",
    # These run as scripts where modwright is not imported.
    "core/subprocess_worker.py",
    "edits/reopen_worker.py",
}
MARKS = {"_all_know", "_opaque"}
"""What modwright writes onto objects and classes of others for itself."""


PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""Documented names of named tuples, which begin so that no field is called like them."""


def is_private(name: object) -> bool:
    hidden = isinstance(name, str) and name[:1] == "_" and name[:2] != "__" and len(name) > 1
    return hidden and name not in PUBLIC


@cache
def trees() -> dict[str, ast.Module]:
    paths = sorted(SOURCE.rglob("*.py"))
    return {str(p.relative_to(SOURCE)): ast.parse(p.read_bytes()) for p in paths}


@cache
def own_names() -> frozenset[str]:
    """Names that modwright's source defines."""
    found: set[str] = set(MARKS)
    for tree in trees().values():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    found.add(name)
                case _:
                    pass
    return frozenset(found)


@cache
def theirs() -> frozenset[str]:
    """Private names of modules, models and configs, also where modwright has one of that name."""
    kinds = (nn.Module, transformers.PreTrainedModel, transformers.PreTrainedConfig)
    names = {name for kind in kinds for name in (*dir(kind), *nn.Module().__dict__)}
    return frozenset(filter(is_private, names))


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if name in own_names():
                continue
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                continue  # of a method that is overridden
            case ast.Attribute(attr=name) if is_private(name) and (
                name not in own_names() or name in theirs()
            ):
                yield node.lineno, name
            case ast.ImportFrom(module=str(home), names=names) if home.split(".")[0] != "modwright":
                private = [one.name for one in names if is_private(one.name)]
                private += [part for part in home.split(".") if is_private(part)]
                yield from ((node.lineno, name) for name in private)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"),
                args=[_, ast.Constant(value=name), *_],
            ) if is_private(name) and name not in own_names():
                yield node.lineno, str(name)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                values = [e.value for e in elements if isinstance(e, ast.Constant)]
                yield from ((node.lineno, name) for name in values if name in theirs())
            case _:
                pass


def test_private_names_of_other_libraries_stand_in_compat() -> None:
    found = [
        f"{path}:{line} {name}"
        for path, tree in trees().items()
        if path not in ALLOWED
        for line, name in private_names(tree)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "model._parameters['weight']",
        "for name in module._modules: pass",
        "getattr(config, '_attn_implementation', None)",
        "setattr(config, '_attn_implementation', 'eager')",
        "from transformers.models.auto.auto_factory import _LazyAutoMapping",
        "from lm_eval.tasks._index import Kind",
        "mapping._extra_content = {}",
        "kinds = ('_parameters', '_buffers')",
    ],
)
def test_a_read_of_a_private_name_is_found(code: str) -> None:
    assert list(private_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "class Model:\n    _no_split_modules = ['Block']",
        "class Reader:\n    def _get_field_parts(self): return super()._get_field_parts()",
        "self._parts = 1",
        "model.__dict__",
        "from modwright.nn import _own",
    ],
)
def test_what_is_ones_own_is_not(code: str) -> None:
    assert not [name for _, name in private_names(ast.parse(code)) if name != "_parts"]
