"""What a part is, it says itself: a component of a new kind is a file, and nobody else changes.

Outside ``nn``, ``anatomy`` and what calls components as their hosts do, nothing asks for a class of
a view, a module or the registry, probes a module for a projection of a known name, or compares the
name of a part with a word. The questions are methods of the views.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import modwright
from modwright.anatomy import views
from modwright.anatomy.families import families
from modwright.edits.registry import part_names
from modwright.nn.component import Kind, components

SOURCE = Path(modwright.__file__).parent
OWN = ("nn/", "anatomy/", "edits/hf_adapters")
"""Where classes and names of parts are at home."""

NAMED = {"kind", "part", "mixer", "component"}
"""How the name of a part is called where it is compared; ``form`` is that of a norm."""


def homes() -> Iterator[Path]:
    """Files whose classes nobody asks for."""
    yield from sorted((SOURCE / "nn").rglob("*.py"))
    yield from sorted((SOURCE / "anatomy" / "views").rglob("*.py"))
    yield SOURCE / "anatomy" / "projection.py"


@cache
def classes() -> frozenset[str]:
    """Names of the classes of modules, views, projections and of the registry of components."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in homes())
    return frozenset(
        n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    )


@cache
def words() -> frozenset[str]:
    """Names and kinds of parts and components, of views and of norms."""
    exported = (getattr(views, name) for name in views.__all__)
    found = [v for v in exported if inspect.isclass(v) and issubclass(v, views.Part)]
    kinds = [view.__name__.lower() for view in found if not inspect.isabstract(view)]
    return frozenset([*part_names(), *components(), *get_args(Kind), *kinds, "rms", "crms"])


@cache
def projections() -> frozenset[str]:
    """What modules call their linear layers."""
    paths = [path for f in families().values() for role, path in f.block.items() if "." in role]
    layers = [
        target.attr
        for path in homes()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("nn.Linear(")
        for target in node.targets
        if isinstance(target, ast.Attribute)
    ]
    return frozenset([*(path.rpartition(".")[2] for path in paths), *layers])


class Asked(ast.NodeVisitor):
    """Lines of a file that ask what a part is in another way than by its methods."""

    def __init__(self, tree: ast.Module) -> None:
        self.lines: list[int] = []
        self.known: set[str] = set()
        self.packages: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        for _ in range(2):  # tuples of classes, and names of these
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign):
                    self._assign(node.value, node.targets)
                elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
                    self._assign(node.value, [node.target])
        self.visit(tree)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        module = getattr(node, "module", None) or ""
        for alias in node.names:
            name = alias.asname or alias.name
            if isinstance(node, ast.ImportFrom) and _at_home(module) and alias.name in classes():
                self.known.add(name)
            elif _at_home(f"{module}.{alias.name}".lstrip(".")):
                self.packages.add(name)

    def _assign(self, value: ast.AST, targets: Sequence[ast.AST]) -> None:
        if self.names_a_class(value) and _is_classes(value):
            self.known |= {target.id for target in targets if isinstance(target, ast.Name)}

    def names_a_class(self, node: ast.AST) -> bool:
        """A class of a view or a module, as itself or among others."""
        return any(
            (isinstance(n, ast.Name) and n.id in self.known)
            or (
                isinstance(n, ast.Attribute)
                and n.attr in classes()
                and ast.unparse(n.value) in self.packages
            )
            for n in ast.walk(node)
        )

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        given = node.args[1] if len(node.args) > 1 else None
        if (
            given is not None
            and (
                (name in ("isinstance", "issubclass") and self.names_a_class(given))
                or (name in ("getattr", "hasattr") and _literals(given) & projections())
            )
        ) or (name.endswith(".register") and any(map(self.names_a_class, node.args))):
            self.lines.append(node.lineno)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        registered = any(ast.unparse(d).endswith(".register") for d in node.decorator_list)
        first = (*node.args.posonlyargs, *node.args.args)[:1]
        kinds = (argument.annotation for argument in first if argument.annotation is not None)
        if registered and any(map(self.names_a_class, kinds)):
            self.lines.append(node.lineno)
        self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        if self.names_a_class(node.cls):
            self.lines.append(node.cls.lineno)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        of_a_type = any(
            ast.unparse(s).startswith("type(") or _ends(s) == "__class__" for s in sides
        )
        literal = set[str]().union(*map(_literals, sides))
        if (of_a_type and any(map(self.names_a_class, sides))) or (
            literal & words() and any(map(_is_a_name, sides))
        ):
            self.lines.append(node.lineno)
        self.generic_visit(node)


def _at_home(module: str) -> bool:
    return f"{module}.".startswith(("modwright.nn.", "modwright.anatomy."))


def _is_classes(node: ast.AST) -> bool:
    """Nothing but names of classes: a tuple or a union of them."""
    held = (
        ast.Name,
        ast.Attribute,
        ast.Tuple,
        ast.BinOp,
        ast.BitOr,
        ast.Add,
        ast.Load,
        ast.Starred,
    )
    return all(isinstance(n, held) for n in ast.walk(node))


def _literals(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Tuple | ast.Set | ast.List):
        return set[str]().union(*map(_literals, node.elts))
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return {node.value} if is_text else set()


def _ends(node: ast.AST) -> str:
    """The last name of an expression: of a variable, an attribute, a key."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(args=[_, ast.Constant(value=str(name)), *_]):
            return name
    return ""


def _is_a_name(node: ast.AST) -> bool:
    """The name of a part; that of a norm's form is not an option of the same name."""
    own = isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self"
    return _ends(node) in NAMED or (own and _ends(node) == "form")


@cache
def asked() -> Counter[str]:
    """How many lines of each file outside of nn and anatomy ask."""
    found: Counter[str] = Counter()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(OWN):
            found[name] = len(set(Asked(ast.parse(path.read_text(encoding="utf-8"))).lines))
    return +found


def test_nobody_asks_for_a_class_or_compares_a_name() -> None:
    assert not asked(), f"ask the view instead: {asked()}"


def test_what_is_looked_for_is_known() -> None:
    assert {"Mlp", "OpaqueMixer", "FactorPair", "FactoredProjection", "Component"} <= classes()
    assert {"mixture", "attention", "token_mixer", "norm", "crms"} <= words()
    assert {"q_proj", "down_proj", "c_proj", "qkv"} <= projections()


HEAD = """
from modwright import anatomy
from modwright.anatomy import Anatomy, Mlp, views
from modwright.nn import FactorPair as Pair
from modwright.nn.block import Block, drop_path_rates
from torch import nn
OURS = (Mlp, Pair)
MORE: tuple[type, ...] = (*OURS, Block)
THEIRS = (nn.Linear, nn.Embedding)
made = Pair(8, 8, 2)
"""


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(part, Mlp)",
        "isinstance(part, nn.Linear | Pair)",
        "isinstance(part, views.OpaqueMixer)",
        "isinstance(part, anatomy.Attention)",
        "isinstance(part, OURS)",
        "isinstance(part, MORE)",
        "issubclass(kind, (int, Block))",
        "type(part) is Mlp",
        "type(part) not in (Mlp, str)",
        "part.__class__ == Pair",
        "match part:\n    case views.Mlp(gate=None):\n        pass",
        "@describe.register\ndef _(part: Mlp) -> str: ...",
        "@describe.register(views.Norm)\ndef _(part): ...",
        "describe.register(Mlp, told)",
        "hasattr(module, 'q_proj')",
        "getattr(module, 'fc1', None)",
        "edit.part == 'mixture'",
        "part != 'attention'",
        "getattr(edit, 'part', '') != 'attention'",
        "stored['part'] == 'factors'",
        "self.mixer == 'identity'",
        "component.kind in ('token_mixer', 'norm')",
        "norm.form == 'crms'",
    ],
)
def test_a_question_for_a_class_or_a_name_is_seen(code: str) -> None:
    assert Asked(ast.parse(HEAD + code)).lines


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(part, nn.Linear)",
        "isinstance(part, THEIRS)",
        "isinstance(made, nn.Module)",
        "part = Mlp(made)",
        "def narrow(part: Mlp) -> Mlp: ...",
        "@register_method('drop')\ndef _(part: Mlp) -> str: ...",
        "getattr(config, 'hidden_size', None)",
        "edit.part == role",
        "role == 'attention'",
        "node.kind == 'table'",
        "self.form == 'crms'",
        "'mlp' in self.pairs",
        "drop_path_rates('attention') == 'attention'",
    ],
)
def test_other_questions_are_free(code: str) -> None:
    assert not Asked(ast.parse(HEAD + code)).lines
