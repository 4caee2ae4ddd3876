"""What doctests in src/ and tests in tests/ share: names, order, and what all of it takes."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import warm_processes
from timing import Clock, in_order, processor_seconds

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent
RECORDED = ROOT / "tests" / "data" / "durations.json"
"""Processor seconds of every file of tests, as ``make durations`` wrote them down."""


@pytest.fixture(autouse=True)
def _desk_of_doctests(
    doctest_namespace: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Examples use torch without importing it, and what they register is forgotten afterwards."""
    if type(request.node).__name__ != "DoctestItem":
        yield
        return
    import torch

    from modwright.core.registry import registries_restored

    doctest_namespace["torch"] = torch
    with registries_restored():
        yield


@pytest.fixture(autouse=True)
def _warm_processes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Checkpoints are opened in processes that are forked from one which has imported torch."""
    monkeypatch.setattr("modwright.core.subprocesses.subprocess", warm_processes)
    wanted = request.node.get_closest_marker("cold_processes") is not None
    with warm_processes.cold(wanted or request.config.getoption("full", False)):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--durations-file",
        metavar="FILE",
        help="where to write the processor seconds of every file of tests",
    )
    parser.addoption(
        "--paper-gate",
        type=float,
        metavar="SHARE",
        help="fail if the tests of one paper take more than this share of all processor seconds",
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
    items[:] = in_order(items, json.loads(RECORDED.read_text()) if RECORDED.exists() else {})


def pytest_collection_finish() -> None:
    """What was imported and collected stays: collectors of garbage need not search it each time."""
    gc.collect()
    gc.freeze()


_since_last_report = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    now, stash = processor_seconds(), item.session.stash
    report.processor_seconds = now - stash.get(_since_last_report, now)  # type: ignore[attr-defined]
    stash[_since_last_report] = now
    return report


def pytest_configure(config: pytest.Config) -> None:
    target, gate = config.getoption("durations_file"), config.getoption("paper_gate")
    if (target or gate) and not hasattr(config, "workerinput"):
        clock = Clock(Path(target) if target else None, gate)
        config.pluginmanager.register(clock, "clock")
