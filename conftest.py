"""What doctests in src/ and tests in tests/ share: names, order, and what all of it takes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent
RECORDED = ROOT / "tests" / "data" / "durations.json"
"""Processor seconds of every file of tests, as ``make durations`` wrote them down."""


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Examples use torch without importing it."""
    if type(request.node).__name__ == "DoctestItem":
        import torch

        doctest_namespace["torch"] = torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--durations-file",
        type=Path,
        metavar="FILE",
        help="where to write the processor seconds of every file of tests",
    )
    parser.addoption(
        "--paper-gate",
        type=float,
        metavar="SECONDS",
        help="fail if the tests of one paper take more processor seconds",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path,
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Doctests are those of src/: workers and helpers beside the tests are not imported."""
    found = yield
    if file_path.is_relative_to(ROOT / "tests"):
        return [collector for collector in found if type(collector).__name__ != "DoctestModule"]
    return found


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker is left with one of them at the end."""
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    items.sort(key=lambda item: -recorded.get(_file(item.nodeid), 0))


# Time


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _processor_seconds() -> float:
    """Of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


_since_last_report = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    now, stash = _processor_seconds(), item.session.stash
    report.processor_seconds = now - stash.get(_since_last_report, now)  # type: ignore[attr-defined]
    stash[_since_last_report] = now
    return report


class Clock:
    """Adds up what the tests took, wherever they ran, and holds papers to their share."""

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
            found[_file(nodeid)] += seconds
        return found

    def papers(self) -> dict[str, float]:
        """Slug -> seconds of the tests that are this paper's own."""
        from paper_tests import of_papers

        return of_papers(self.tests)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.target is not None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            rounded = {name: round(taken, 1) for name, taken in self.files.most_common()}
            self.target.write_text(json.dumps(rounded, indent=1) + "\n")
        if self.gate is not None:
            self.over = {slug: s for slug, s in self.papers().items() if s > self.gate}
            if self.over and session.exitstatus == 0:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("processor seconds")
        for name, taken in self.tests.most_common(25):
            terminalreporter.line(f"{taken:8.1f}  {name}")
        terminalreporter.line(f"{self.tests.total():8.1f}  all tests")
        for slug, taken in sorted(self.over.items()):
            terminalreporter.line(
                f"{slug}: its tests took {taken:.0f} processor seconds, {self.gate:.0f} are allowed"
            )


def pytest_configure(config: pytest.Config) -> None:
    target, gate = config.getoption("durations_file"), config.getoption("paper_gate")
    if (target or gate) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Clock(target, gate), "clock")
