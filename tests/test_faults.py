"""Every fault that was found is held by a test that names it, or waits for a milestone."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FAULTS: dict[str, Any] = yaml.safe_load((HERE / "faults.yaml").read_text(encoding="utf-8"))
LATER: dict[str, int | str] = FAULTS["later"]
SAID = {fault: sentence for fault, sentence in FAULTS.items() if fault != "later"}
NAMED = re.compile(r"fault_([A-Z]\d+)(?!\d)")


@cache
def holding() -> dict[str, list[str]]:
    """Id of a fault -> the test functions whose names contain it."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(HERE.rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "fault_" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for fault in NAMED.findall(node.name):
                    found[fault].append(f"{file.relative_to(HERE)}::{node.name}")
    return found


def test_a_name_with_more_digits_is_of_another_fault() -> None:
    assert NAMED.findall("test_fault_A17_maps") == ["A17"]
    assert NAMED.findall("test_a_name_by_default_A_and_fault_B2") == ["B2"]


def test_what_is_right_is_held_by_a_test_that_names_the_fault() -> None:
    assert not [fault for fault, sentence in SAID.items() if sentence and fault not in holding()]


def test_what_is_right_is_said_or_waits_for_a_milestone() -> None:
    assert all(isinstance(sentence, str) for sentence in SAID.values())
    assert (
        {fault for fault, sentence in SAID.items() if not sentence} <= LATER.keys() <= SAID.keys()
    )


def test_a_test_of_a_fault_that_is_not_listed() -> None:
    assert not {fault: tests for fault, tests in holding().items() if not SAID.get(fault)}
