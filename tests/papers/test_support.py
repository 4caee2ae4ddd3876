"""The table of what works where: complete, asked from the methods, and never all refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from modwright.anatomy import Anatomy
from modwright.anatomy.families import families
from modwright.core.errors import InvalidInputError
from modwright.papers.support import Support, support_table
from modwright.surgery import Requirements, method_names, register_method
from modwright.surgery.method import METHODS


@pytest.fixture(scope="module")
def table() -> list[Support]:
    return support_table()


def test_every_method_stands_once_for_every_preset(table: list[Support]) -> None:
    presets = {name for family in families().values() for name in family.presets}
    pairs = Counter((row.method, row.preset) for row in table)
    assert set(pairs) == {(name, preset) for name in method_names() for preset in presets}
    assert set(pairs.values()) == {1}
    assert all(row.uses and row.family for row in table)


def test_no_method_is_refused_everywhere_and_no_family_refuses_all(table: list[Support]) -> None:
    works = {row.method for row in table if row.word == "yes"}
    assert works == set(method_names())
    assert {row.preset for row in table if row.word == "yes"} == {row.preset for row in table}


def test_reasons_are_one_line_and_name_the_method(table: list[Support]) -> None:
    for row in table:
        for use in row.uses:
            if use.refusal is not None:
                assert "\n" not in use.refusal and use.refusal.startswith(f"{row.method}:")


def test_normalized_queries_are_not_narrowed(table: list[Support]) -> None:
    (row,) = (row for row in table if (row.method, row.preset) == ("modegpt", "tiny-qwen3"))
    assert row.word == "in part"
    for use in row.uses:
        narrowed = use.options.get("pairs", ["query_key"])
        assert ("query_key" in narrowed) == ("normalizes its queries" in (use.refusal or ""))


@pytest.fixture
def no_methods() -> Iterator[None]:
    with METHODS.restored(empty=True):
        yield


def test_a_new_method_enters_by_registering(no_methods: None) -> None:
    @register_method("choosy", requires=Requirements(), examples=({}, {"wide": True}))
    @dataclass(frozen=True)
    class Choosy:
        wide: bool = False

        def title(self) -> str:
            return "wide" if self.wide else "narrow"

        def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
            if self.wide and anatomy.family.name == "bert":
                raise InvalidInputError("choosy: bert is not wide")
            return 0, 0

    rows: dict[str, Any] = {row.preset: row for row in support_table()}
    assert rows["tiny-llama"].word == "yes"
    assert rows["tiny-bert"].word == "in part"
    assert [(u.title, u.refusal) for u in rows["tiny-bert"].uses] == [
        ("narrow", None),
        ("wide", "choosy: bert is not wide"),
    ]
