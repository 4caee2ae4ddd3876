"""Source text is gathered whole: all that a definition uses, nothing else, nothing rewritten."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modwright.checkpoint.export.inline_sources import inline_sources
from modwright.core.errors import InvalidInputError

FIRST = """\
import math
from dataclasses import dataclass

SIZE = 3


def _helper(x):
    return x + SIZE


def unused():
    return math.pi


@dataclass
class Part:
    size: int = SIZE

    def run(self, x):
        return _helper(x) * self.size
"""
SECOND = """\
import math
import {first}_first

from {first}.first import Part as Basis


def _helper(x):
    return math.floor(x) - 1


class Other(Basis):
    helper = _helper

    def run(self, x):
        # SIZE is a name of this function's own here
        SIZE = _helper(x)
        return super().run(SIZE)


def register(name):
    def mark(kind):
        return kind

    return mark


@register("marked")
def make():
    return Other()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """A package of two modules, under a name that no other test has."""
    name = f"bundled_{abs(hash(request.node.name))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "first.py").write_text(FIRST)
    (tmp_path / name / "second.py").write_text(
        SECOND.replace("import {first}_first\n", "").replace("{first}", name)
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def module(package: str, name: str) -> Any:
    import importlib

    return importlib.import_module(f"{package}.{name}")


def run(text: str) -> dict[str, Any]:
    made = ModuleType("gathered")
    sys.modules["gathered"] = made  # dataclasses look there for what annotations mean
    exec("from __future__ import annotations\n" + text, made.__dict__)
    return made.__dict__


def test_what_is_used_comes_along_and_what_is_not_stays(package: str) -> None:
    text, names = inline_sources([module(package, "first").Part], packages=[package])
    assert names == ("Part",)
    assert "unused" not in text and "import math" not in text
    assert text.index("SIZE = 3") < text.index("class Part")
    assert run(text)["Part"](2).run(1) == 8


def test_equal_names_of_two_modules_are_kept_apart(package: str) -> None:
    second = module(package, "second")
    text, (other, make) = inline_sources(
        [second.Other, second.make], packages=[package], without=[second.register]
    )
    space = run(text)
    assert {"_helper", "_helper_second"} <= space.keys()
    for x in (1.5, 4.0):
        assert space[other](2).run(x) == second.Other(2).run(x)
        assert space[make]().run(x) == second.make().run(x)
    assert "register" not in text
    assert f"import {package}" not in text and f"from {package}" not in text


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("def f():\n    from {p}.first import Part\n    return Part\n", "inside a function"),
        ("import {p}.first as first\n\ndef f():\n    return first\n", "import names from it"),
        ("import {p}.first as one\n\ndef f(x):\n    return one.Part(x).run(x)\n", None),
        ("def f():\n    return gone\n", "'gone', which is not defined"),
        (
            "from math import floor as dataclass\nfrom {p}.first import Part\n\n"
            "def f(x):\n    return dataclass(Part(x).size + 0.5)\n",
            None,
        ),
        (
            "from {p}.first import _helper as clash\nfrom {p}.second import _helper\n\n"
            "def f(x):\n    _helper_second = 1\n    return clash(x)\n\n"
            "def _helper_first(x):\n    return x\n",
            None,
        ),
    ],
)
def test_what_cannot_come_along_is_refused(
    source: str, note: str | None, package: str, tmp_path: Path
) -> None:
    (tmp_path / package / "third.py").write_text(source.replace("{p}", package))
    f = module(package, "third").f
    if note is None:
        text, (name,) = inline_sources([f], packages=[package])
        assert run(text)[name](2) == f(2)
        return
    with pytest.raises(InvalidInputError, match=note):
        inline_sources([f], packages=[package])


def test_a_root_must_stand_at_the_top_of_a_module_with_source() -> None:
    def inner() -> None:
        pass

    inner.__module__ = "modwright.nn.placeholders"
    with pytest.raises(InvalidInputError, match="a function inside of test_a_root_must"):
        inline_sources([inner])
    inner.__qualname__ = "inner"
    with pytest.raises(InvalidInputError, match="not defined at the top level"):
        inline_sources([inner])
    inner.__module__ = "builtins"
    with pytest.raises(InvalidInputError, match=r"builtins\.inner cannot be imported"):
        inline_sources([inner])
