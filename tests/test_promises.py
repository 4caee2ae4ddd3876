"""Every promise is held by a test that names it, and the page that lists them is up to date."""

from __future__ import annotations

from pathlib import Path

from promises import as_markdown, named_by, promises

PAGE = Path(__file__).parent.parent / "docs" / "promises.md"
KNOWN = {name for entries in promises().values() for name in entries}


def test_every_promise_is_held_by_a_test() -> None:
    assert not sorted(KNOWN - set(named_by()))


def test_tests_name_promises_that_there_are() -> None:
    assert not {name: tests for name, tests in named_by().items() if name not in KNOWN}


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown()
