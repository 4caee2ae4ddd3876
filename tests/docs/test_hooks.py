"""What the site makes of docstrings, and what it says of a table that is not there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from documents import ROOT

HOOKS = str(ROOT / "docs" / "hooks")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(HOOKS)
    before = set(sys.modules)
    yield importlib.import_module("hook")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(HOOKS):
            del sys.modules[name]


def page(path: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=path))


def test_a_marker_becomes_its_table(hook: Any) -> None:
    made = hook.on_page_markdown("a\n\n<!-- modwright: packaged -->\n\nb", page("x.md"), None, None)
    assert made.startswith("a\n\n| name |") and "`smollm2-135m`" in made and made.endswith("\n\nb")


def test_a_marker_without_a_table_is_an_error_that_names_those_there_are(hook: Any) -> None:
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"x\.md: no table 'familes'; there are .*families"):
        hook.on_page_markdown("<!-- modwright: familes -->", page("x.md"), None, None)


def test_pages_of_papers_get_a_head_and_others_none(hook: Any) -> None:
    made = hook.on_page_markdown("# T\n\ntext\n", page("papers/llm-drop.md"), None, None)
    assert made.startswith("# T\n\n<span") and "2406.15786" in made and made.endswith("\ntext\n")
    assert hook.on_page_markdown("# T\n", page("papers/index.md"), None, None) == "# T\n"


def test_docstrings_are_read_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HOOKS)
    docstrings = importlib.import_module("docstrings")
    text = (
        "As :func:`other`.\n\nArgs:\n    up, gate: (k, d);\n        more.\n    down: (d, k).\n\n"
        "Example:\n    >>> 1\n    1\n"
    )
    thing = SimpleNamespace(is_alias=False, docstring=SimpleNamespace(value=text))
    docstrings.Docstrings().on_instance(obj=thing)
    assert thing.docstring.value == (
        "As `other`.\n\nArgs:\n    up: (k, d);\n        more.\n    gate: (k, d);\n        more.\n"
        "    down: (d, k).\n\nExamples:\n    >>> 1\n    1\n"
    )
