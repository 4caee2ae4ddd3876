"""What `make demo` shows, on the real model: minutes, so with --full alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modwright.report import read_report

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.models]


def demo(out: Path) -> subprocess.Popen[bytes]:
    command = ["run", "examples/demo.yaml", "-o", str(out), "--set", "threads=1"]
    return subprocess.Popen([sys.executable, "-m", "modwright", *command], cwd=ROOT)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert demo(out).wait() == 0
    return out


def healing(report: Any) -> Any:
    return next(stage for stage in report.stages if stage.method == "heal")


def test_the_demo_shows_a_cut_that_pays(shown: Path) -> None:
    report = read_report(shown)
    assert report.after.cost["parameters"] <= 124_000_000
    for text, bound in (("lee", 1.16), ("sklearn-descr", 1.21)):
        rows = healing(report).reasons[f"on {text}"]
        last = list(rows)[-1]
        assert rows[last]["perplexity"] <= bound * rows["baseline"]["perplexity"], text
    for stage in (report.before, report.after):
        samples = stage.measured["generation"]["samples"]
        assert len(samples) == 5
        assert max(sample["repetition"] for sample in samples) <= 0.05


def weights(out: Path) -> dict[str, str]:
    files = sorted(out.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_killed_in_the_healing_it_ends_with_the_same_weights(shown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = demo(out)
    while not list(out.with_name("out.work").glob("step-3/**/checkpoint-*")):
        assert process.poll() is None
        time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert demo(out).wait() == 0
    assert weights(out) == weights(shown)
    assert json.loads((out / "config.json").read_text())
