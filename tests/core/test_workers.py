"""Worker processes: each does one piece after another, failures are named, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import modwright
from modwright.core.errors import InvalidInputError, ProcessFailed
from modwright.core.workers import work_in_processes

WORK = """\
import os, time
from modwright.core.errors import InvalidInputError

def work(n, folder=""):
    print("not an answer")
    if n == 3:
        raise InvalidInputError("three is refused")
    if n == 4:
        raise ValueError("four fails")
    if n == 5:
        os.kill(os.getpid(), 9)
    if n == 6:
        open(f"{folder}/{os.getpid()}", "w").close()
        time.sleep(600)
    return [n * n, os.getpid(), os.environ["OMP_NUM_THREADS"]]
"""


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "piece_of_work.py").write_text(WORK)
    library = str(Path(modwright.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), library)))
    return "piece_of_work:work"


def test_every_request_is_answered_by_one_of_the_processes(function: str) -> None:
    found: dict[str, Any] = {}
    names = {f"piece {n}": {"n": n} for n in (1, 2, 7, 8, 9)}
    work_in_processes(function, names, 2, found.__setitem__)
    assert {name: answer[0] for name, answer in found.items()} == {
        name: given["n"] ** 2 for name, given in names.items()
    }
    processes = {answer[1] for answer in found.values()}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes
    assert {answer[2] for answer in found.values()} == {"1"}


@pytest.mark.parametrize(
    ("n", "code", "says"),
    [
        (3, 2, "odd: three is refused"),
        (4, 1, "odd: failed: ValueError: four fails"),
        (5, 1, "odd: its process ended with code -9; finished work is kept"),
    ],
)
def test_the_first_failure_is_named_and_ends_the_work(
    function: str, n: int, code: int, says: str
) -> None:
    found: dict[str, Any] = {}
    requests = {"first": {"n": 1}, "odd": {"n": n}, "last": {"n": 2}}
    with pytest.raises(ProcessFailed) as failed:
        work_in_processes(function, requests, 1, found.__setitem__)
    assert str(failed.value).startswith(says) and failed.value.exit_code == code
    assert list(found) == ["first"]


def test_processes_end_with_the_one_that_asked_them(function: str, tmp_path: Path) -> None:
    place = tmp_path / "seen"
    place.mkdir()
    asked = {f"{i}": {"n": 6, "folder": str(place)} for i in range(2)}
    code = f"from modwright.core.workers import *; work_in_processes({function!r}, {asked!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until = time.monotonic() + 100
        while len(list(place.iterdir())) < 2 and parent.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        workers = [int(file.name) for file in place.iterdir()]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    while any(map(_is_there, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_is_there, workers))


def _is_there(process: int) -> bool:
    """Whether a process runs; one that nobody waited for yet has no memory left."""
    try:
        return "VmSize" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_file_that_is_imported_for_what_it_registers_starts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modwright.core.workers.plugin_being_loaded", lambda: "parts.py")
    with pytest.raises(InvalidInputError, match=r"parts\.py does its work when it is imported"):
        work_in_processes("os:listdir", {"a": {}}, 1)
