"""Times are added up by file and by paper, and decide what starts first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from timing import Clock, in_order


@dataclass
class Item:
    nodeid: str
    slow: bool = False

    def get_closest_marker(self, name: str) -> bool:
        return self.slow and name == "slow"


def report(nodeid: str, seconds: float) -> Any:
    return SimpleNamespace(nodeid=nodeid, processor_seconds=seconds)


def test_long_files_start_first_and_keep_their_order() -> None:
    items = [Item("a.py::1"), Item("b.py::1"), Item("b.py::2"), Item("new.py::1", slow=True)]
    items += [Item("c.py::1"), Item("long.py::1", slow=True)]
    found = in_order(items, {"b.py": 2.0, "c.py": 9.0, "long.py": 200.0})
    names = ["long.py::1", "new.py::1", "c.py::1", "b.py::1", "b.py::2", "a.py::1"]
    assert [item.nodeid for item in found] == names


@pytest.mark.parametrize(("gate", "failed"), [(0.1, True), (0.2, False)])
def test_a_paper_past_its_share_fails_the_run(gate: float, failed: bool, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "out" / "durations.json", gate)
    clock.pytest_runtest_logreport(report("tests/models/test_tnt.py::test_a", 8.0))
    clock.pytest_runtest_logreport(report("tests/models/test_tnt.py::test_a", 4.0))
    clock.pytest_runtest_logreport(report("tests/acceptance/test_tnt_digits.py::test_a", 99.0))
    session: Any = SimpleNamespace(exitstatus=0)
    clock.pytest_sessionfinish(session)
    assert (session.exitstatus != 0) == failed
    assert json.loads((tmp_path / "out" / "durations.json").read_text()) == {
        "tests/acceptance/test_tnt_digits.py": 99.0,
        "tests/models/test_tnt.py": 12.0,
    }
    said: list[str] = []
    clock.pytest_terminal_summary(SimpleNamespace(section=said.append, line=said.append))
    assert ("tnt: its tests took 10.8% of all seconds, 10.0% are allowed" in said) == failed
