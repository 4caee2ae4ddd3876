"""Commands run in this process, with their two streams and exit code kept apart."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from modwright.cli.entry import run_command


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[[str], Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``modwright ...``, given as one line."""

    def run(line: str) -> Done:
        capsys.readouterr()
        code = run_command(shlex.split(line))
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def recipe_file(place: Path, wordy_model: Path, wordy_text: Path) -> Path:
    """A quick recipe of two steps in the working directory."""
    text = f"""\
model: {wordy_model}
threads: 1
calibration: {{data: {wordy_text}, windows: 4, length: 32}}
steps:
  - method: llm_drop
    n: 1
  - {{method: modegpt, sparsity: 0.2}}
evaluate:
  perplexity: {{data: {wordy_text}, windows: 2, length: 24}}
  generate: {{prompt: w7 w8, max_new_tokens: 3}}
  speed: {{prompt: 4, new_tokens: 2, repeats: 1, max_seconds: 0}}
  length: 32
"""
    (place / "recipe.yaml").write_text(text)
    return place / "recipe.yaml"
