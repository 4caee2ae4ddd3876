"""What covering tests leave out, and what they never leave out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from covering import FEW, LAYOUT_CLASSES, covering

OTHERS = ("tiny-gemma", "tiny-mistral", "tiny-opt", "tiny-qwen3")
PRESETS = {*LAYOUT_CLASSES, *OTHERS}


@dataclass(eq=False)
class Spec:
    params: dict[str, Any]


@dataclass(eq=False)
class Item:
    """What a collected test says of itself."""

    originalname: str
    callspec: Spec | None
    marks: dict[str, Any] = field(default_factory=dict)
    path: str = "tests/test_x.py"

    def get_closest_marker(self, name: str) -> Any:
        return self.marks.get(name)


def product(cases: int, argument: str = "preset", **marks: Any) -> list[Any]:
    return [
        Item("test_f", Spec({argument: name, "case": case}), marks)
        for name in sorted(PRESETS)
        for case in range(cases)
    ]


def kept(items: list[Any], few: int | None = None) -> set[tuple[str, int]]:
    return {tuple(item.callspec.params.values()) for item in covering(items, PRESETS, few)}


@pytest.mark.parametrize("argument", ["preset", "decoder"])
@pytest.mark.parametrize("cases", [1, 2, 4, 9, 18])
def test_layout_classes_run_everything_and_others_a_few_in_turn(cases: int, argument: str) -> None:
    found = kept(product(cases, argument))
    for name in PRESETS:
        expected = cases if name in LAYOUT_CLASSES else min(cases, FEW)
        assert len([case for preset, case in found if preset == name]) == expected
    seen = {case for preset, case in found if preset in OTHERS}
    assert len(seen) == min(cases, FEW * len(OTHERS))


def test_a_test_may_say_which_cases_and_which_families() -> None:
    even = pytest.mark.covering(lambda params: params["case"] % 2 == 0).mark
    found = kept(product(6, covering=even))
    assert {case for preset, case in found if preset == "tiny-opt"} == {0, 2, 4}
    assert {case for preset, case in found if preset == "tiny-llama"} == set(range(6))
    families = pytest.mark.families("tiny-opt", "tiny-bert").mark
    assert kept(product(2, families=families)) == {
        (name, case) for name in ("tiny-opt", "tiny-bert") for case in range(2)
    }


@pytest.mark.parametrize("few", [1, 2])
def test_all_families_may_run_a_few_cases(few: int) -> None:
    found = kept(product(9, covering=pytest.mark.covering(lambda params: True).mark), few)
    assert len(found) == few * len(PRESETS)
    assert {case for _, case in found} == set(range(9))


@pytest.mark.parametrize("few", [None, 1])
def test_cases_of_one_family_alone_are_kept(few: int | None) -> None:
    pairs = [(name, case) for case, name in enumerate(["tiny-opt"] * 5 + ["tiny-llama"] * 2)]
    items: list[Any] = [
        Item("test_f", Spec({"preset": name, "case": case})) for name, case in pairs
    ]
    assert kept(items, few) == set(pairs)


def test_tests_without_a_family_are_kept() -> None:
    items: list[Any] = [Item("test_g", None), Item("test_h", Spec({"case": 1}))]
    assert covering(items, PRESETS) == items


def test_every_layout_class_is_a_preset(family_presets: dict[str, str]) -> None:
    assert LAYOUT_CLASSES.keys() <= family_presets.keys()
