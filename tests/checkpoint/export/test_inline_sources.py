"""Sources gathered into one text; a registry in it holds what is needed and nothing more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch

from modwright.checkpoint.export.inline_sources import inline_sources
from modwright.core.errors import InvalidInputError
from modwright.edits.registry import activation
from modwright.nn import PolyNorm
from modwright.nn.component import component

TABLE = ("modwright.nn.activations", "ACTIVATIONS")

Load = Callable[..., ModuleType]


def run(acts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    text, (name,) = inline_sources([activation], without=(component,), tables={TABLE: acts})
    return text, {"activation": defined_in(text)[name], **defined_in(text)}


def defined_in(text: str) -> dict[str, Any]:
    defined: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, "written", "exec"), defined)
    return defined


def inlined(*roots: Any, **options: Any) -> Any:
    """The first root, out of the text."""
    text, names = inline_sources(roots, without=(component,), **options)
    return defined_in(text)[names[0]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Writes modules, name by name, and imports the last."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def load(**sources: str) -> ModuleType:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(dedent(source))
            written.append(name)
        return __import__(written[-1])

    yield load
    for name in written:
        sys.modules.pop(name, None)


def test_a_registry_becomes_a_dictionary_of_what_is_needed() -> None:
    text, defined = run({"poly_norm": PolyNorm})
    assert "ACTIVATIONS = {'poly_norm': PolyNorm}" in text
    assert "class Registry" not in text and "class PolyReLU" not in text
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports and not any("modwright" in line for line in imports)
    made, x = defined["activation"]("poly_norm", {"order": 2}), torch.randn(3, 8)
    assert type(made) is not PolyNorm and torch.equal(made(x), PolyNorm(order=2)(x))


def test_where_nothing_of_it_is_needed_it_is_empty() -> None:
    text, defined = run({})
    assert "ACTIVATIONS = {}" in text and "class PolyNorm" not in text
    assert torch.equal(defined["activation"]("relu")(torch.tensor([-1.0])), torch.zeros(1))


def test_the_same_name_for_other_things_is_told_apart(load: Load) -> None:
    """Definitions, what is imported, and what is everywhere."""
    mine = load(
        one="""
            from math import sqrt
            SIZE = 2
            def size(x):
                return sqrt(x) + SIZE
            def max(x):
                return 5
        """,
        two="""
            from cmath import sqrt
            from one import max as largest, size as other
            SIZE = 7
            def size(x):
                return sqrt(x).imag + SIZE + other(4) + largest(0) + max(1, 2)
        """,
    )
    assert mine.size(-9) == 3 + 7 + 4 + 5 + 2
    assert inlined(mine.size)(-9) == mine.size(-9)
    text, (name,) = inline_sources([mine.size], reserved={"size", "sqrt"})
    assert defined_in(text)[name](-9) == mine.size(-9)
    assert not {"size", "sqrt", "max"} & defined_in(text).keys()


def test_one_thing_that_modules_import_in_other_ways_is_imported_once(load: Load) -> None:
    mine = load(
        one="import torch.nn as nn\ndef one(x):\n    return nn.Identity()(x)\n",
        two="""
            import torch
            import torch.nn.functional
            from torch import nn as layers
            from one import one
            def two(x):
                return one(layers.ReLU()(x)) + torch.nn.functional.relu(x)
        """,
    )
    text, _ = inline_sources([mine.two])
    assert inlined(mine.two)(torch.tensor(3.0)) == 6
    heads = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert heads == ["import torch", "import torch.nn.functional", "from torch import nn as layers"]


def test_modules_that_are_imported_whole_are_taken_along(load: Load) -> None:
    mine = load(
        deep="FACTOR = 3\ndef times(x):\n    return x * FACTOR\n",
        near="import deep as inner\nCOUNT = 2\n",
        mine="""
            import near
            def mine(x, near_by=1):
                return near.inner.times(x) + near.COUNT + near_by
        """,
    )
    assert inlined(mine.mine)(5) == 18


def test_what_is_only_told_to_type_checkers_need_not_be_there(load: Load) -> None:
    mine = load(
        mine="""
            from __future__ import annotations
            import typing
            if typing.TYPE_CHECKING:
                from no_such_package import Thing
            def mine(x: Thing) -> Thing:
                return x
        """
    )
    text, _ = inline_sources([mine.mine])
    assert "no_such_package" not in text


def test_decorators_are_left_out_by_what_they_are(load: Load) -> None:
    from modwright.core.registry import registries_restored

    with registries_restored():
        mine = load(
            mine="""
                from dataclasses import dataclass as component
                from functools import partial
                from modwright.nn import component as module
                from modwright.nn.component import component as known

                as_norm = partial(known, kind="norm")

                @component
                @known(
                    "users_one", kind="norm"
                )
                class One:
                    size: int = 4

                @partial(known, kind="norm")("users_two")
                @module.component("users_three", kind="norm")
                @as_norm("users_four")
                @component
                class Two:
                    size: int = 5
            """
        )
    assert inlined(mine.One)().size == 4 and inlined(mine.Two)(6).size == 6
    text, _ = inline_sources([mine.One, mine.Two], without=(component,))
    assert text.count("@") == 2 and "users_" not in text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "def wrap(name):\n    return component(name, kind='norm')\n"
            "@wrap('users_wrapped')\nclass Mine:\n    pass\n",
            "wrap of mine.py uses component, and names are registered with modwright only; use "
            "classes and functions themselves, and the decorator right where they are",
        ),
        (
            "from modwright.nn.component import COMPONENTS\n"
            "class Mine:\n    def make(self):\n        return COMPONENTS['linear']\n",
            "Mine of mine.py uses COMPONENTS, and names are registered",
        ),
        (
            "TABLE = {}\nTABLE['a'] = 1\nclass Mine:\n    table = TABLE\n",
            "TABLE of mine.py is changed after it is defined, in line 3; say it in one statement",
        ),
        (
            "ROWS = []\nfor i in range(2):\n    ROWS.append(i)\nclass Mine:\n    rows = ROWS\n",
            "ROWS",
        ),
        (
            "try:\n    import einops\nexcept ImportError:\n    einops = None\n"
            "class Mine:\n    found = einops\n",
            "einops of mine.py is bound by line 2, in a block or with others; define or import it "
            "in a statement of its own at the top level",
        ),
        ("A, B = 1, 2\nclass Mine:\n    a = A\n", "A of mine.py is bound by line 2"),
        ("A = 1; B = 2\nclass Mine:\n    b = B\n", "B of mine.py shares line 2 with another"),
        ("A = 1\nA = A + 1\nclass Mine:\n    a = A\n", "A of mine.py is defined a second time in"),
        (
            "from beside import *\nclass Mine:\n    a = value\n",
            "value of mine.py comes from `import \\*` in line 2",
        ),
        (
            "import beside\nclass Mine:\n    a = getattr(beside, 'value')\n",
            "mine.py uses the module beside as a whole; import names from it",
        ),
        (
            "class Mine:\n    def f(self):\n        from beside import value\n        return 1\n",
            "Mine of mine.py imports beside inside a function; import it at the top",
        ),
        ("class Mine:\n    here = __file__\n", "mine.py looks for files beside it \\(__file__\\)"),
        (
            "from beside import value as torch\nimport built\nclass Mine:\n    a = built.f\n",
            "the source of built is not there, so it cannot be exported",
        ),
        (
            "if component:\n    class Mine:\n        pass\n",
            "Mine of mine.py is bound by line 2, in a block",
        ),
    ],
)
def test_what_would_be_something_else_is_refused_in_one_line(
    source: str, told: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modwright.core.registry import registries_restored

    built: Any = ModuleType("built")
    built.__file__, built.f = str(tmp_path / "built.so"), len
    monkeypatch.setitem(sys.modules, "built", built)
    with registries_restored():
        head = "from modwright.nn.component import component\n"
        mine = load(beside="__all__ = ['value']\nvalue = 3\n", mine=head + source)
        with pytest.raises(InvalidInputError, match=f"^part 'm': {told}") as caught:
            inline_sources([mine.Mine], without=(component,), said={0: "part 'm'"})
    assert "\n" not in str(caught.value)


def test_what_a_decorator_puts_in_the_place_of_a_class_is_not_taken_for_it(load: Load) -> None:
    mine = load(
        mine="""
            seen = []
            def swapped(kind):
                seen.append(kind)
                return int
            @swapped
            class Mine:
                pass
        """
    )
    with pytest.raises(
        InvalidInputError, match=r"^Mine is not defined at the top level of mine.py$"
    ):
        inline_sources(mine.seen)


def test_a_name_that_cannot_be_replaced_is_refused(load: Load) -> None:
    mine = load(
        one="def f():\n    return 1\n",
        two="from one import f as other\ndef f(other_one=1):\n    one = other()\n    return one\n",
        mine="""
            from two import f as two
            def f(f_two=2):
                return two() + f_two
        """,
    )
    with pytest.raises(
        InvalidInputError, match=r"^f of mine.py has a name of its own for two; ren"
    ):
        inline_sources([mine.f])
