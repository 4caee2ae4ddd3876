"""What tests take: processor seconds of every file, and the share of every paper."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from paper_tests import of_papers
from warm_processes import seconds_of_processes

__all__ = ["Clock", "file_of", "in_order", "processor_seconds"]

UNKNOWN = 100.0
"""Processor seconds of a file with slow tests that was never measured."""


def processor_seconds() -> float:
    """Of this process and of the processes that it has waited for."""
    return sum(os.times()[:4]) + seconds_of_processes()


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def in_order(items: Iterable[Any], recorded: dict[str, float]) -> list[Any]:
    """Files that took long come first, so that no worker is left with one of them at the end.

    A file that was never measured is taken for a long one if it has slow tests.
    """
    found = list(items)
    slow = {file_of(item.nodeid) for item in found if item.get_closest_marker("slow")}
    guess = dict.fromkeys(slow, UNKNOWN) | recorded
    return sorted(found, key=lambda item: -guess.get(file_of(item.nodeid), 0.0))


class Clock:
    """Adds up what the tests took, wherever they ran, and holds papers to their share of it.

    The gate is a share of all seconds: it asks the same of a slow machine and of a fast one.
    """

    def __init__(self, target: Path | None, gate: float | None) -> None:
        self.target, self.gate = target, gate
        self.tests: Counter[str] = Counter()
        self.over: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid] += getattr(report, "processor_seconds", 0.0)

    @property
    def files(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for nodeid, seconds in self.tests.items():
            found[file_of(nodeid)] += seconds
        return found

    def papers(self) -> dict[str, float]:
        """Slug -> seconds of the tests that are this paper's own."""
        return of_papers(self.tests)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.target is not None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            rounded = {name: round(taken, 1) for name, taken in self.files.most_common()}
            self.target.write_text(json.dumps(rounded, indent=1) + "\n")
        if self.gate is not None:
            allowed = self.gate * self.tests.total()
            self.over = {slug: s for slug, s in self.papers().items() if s > allowed}
            if self.over and session.exitstatus == 0:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("processor seconds")
        for name, taken in self.tests.most_common(25):
            terminalreporter.line(f"{taken:8.1f}  {name}")
        terminalreporter.line(f"{self.tests.total():8.1f}  all tests")
        for slug, taken in sorted(self.over.items()):
            share = taken / self.tests.total()
            terminalreporter.line(
                f"{slug}: its tests took {share:.1%} of all seconds, {self.gate:.1%} are allowed"
            )
