"""Progress says totals and time left; JSON and words keep to their streams."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from modwright.cli.console import RichProgress, emit_json, log, make_progress, output
from modwright.core import progress as progress_module
from modwright.core.progress import SILENT, PlainProgress


class Clock:
    """Stands for time.monotonic; a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    return clock


@pytest.mark.contract("L2")
def test_plain_progress_says_total_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(every=5.0, stream=stream).phase("second moments", 10) as task:
        for _ in range(10):
            clock.now += 2.0
            task.advance()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "second moments: 3/10, about 14 s left",
        "second moments: 6/10, about 8 s left",
        "second moments: 9/10, about 2 s left",
        "second moments: 10/10 in 20 s",
    ]


def test_plain_progress_counts_big_steps(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(every=5.0, stream=stream).phase("copy", 100) as task:
        clock.now += 6.0
        task.advance(25)
    assert stream.getvalue().splitlines() == [
        "copy: 25/100, about 18 s left",
        "copy: 25/100 in 6 s",
    ]


def test_short_phases_say_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(stream=stream).phase("decompose", 3) as task:
        for _ in range(3):
            clock.now += 0.5
            task.advance()
    assert stream.getvalue() == ""


def test_a_phase_that_fails_does_not_say_that_it_is_done(clock: Clock) -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), PlainProgress(stream=stream).phase("copy", 3):
        clock.now += 60.0
        raise ValueError
    assert stream.getvalue() == ""


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.phase("copy", 3) as task:
        task.advance(3)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_plain_and_on_stderr(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    found = make_progress()
    assert isinstance(found, PlainProgress)
    with found.phase("copy", 2) as task:
        clock.now += 9.0
        task.advance()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "copy: 1/2" in printed.err


@pytest.mark.contract("L2")
def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    found = make_progress()
    assert isinstance(found, RichProgress)
    with found.phase("second moments", 4) as task:
        task.advance(4)
    with found.phase("decompose", 2) as task:  # one after the other
        task.advance(2)
    assert "second moments" in stream.getvalue()
    assert "4/4" in stream.getvalue()


def test_words_go_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    log("opening a model")
    output().print("a result")
    emit_json({"a": 1})
    printed = capsys.readouterr()
    assert printed.err == "opening a model\n"
    assert printed.out.startswith("a result\n")
    assert json.loads(printed.out.removeprefix("a result\n")) == {"a": 1}


def test_results_have_no_colors_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output().print("[bold red]x[/] 12 'text' https://example.org")
    assert "\x1b" not in capsys.readouterr().out


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}, "d": "NaN"})
    assert json.loads(capsys.readouterr().out) == {
        "a": [None, [None, 1.5]],
        "b": {"c": None},
        "d": "NaN",
    }


def test_json_of_what_is_no_json_fails_loudly(tmp_path: Path) -> None:
    value: Any = {"path": tmp_path}
    with pytest.raises(TypeError):
        emit_json(value)
