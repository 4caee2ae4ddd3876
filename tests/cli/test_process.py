"""The program as the shell starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "rich", "yaml")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "MODWRIGHT_DEBUG")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def modwright(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modwright", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_whole_run(recipe_file: Path) -> None:
    """JSON alone on stdout, words on stderr, no colors, a checkpoint that was reopened."""
    here = recipe_file.parent
    done = modwright("run", "recipe.yaml", "-o", "out", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [stage["name"] for stage in report["stages"]] == ["before", "1 llm_drop", "2 modegpt"]
    assert "\x1b" not in done.stdout + done.stderr
    # How many lines of progress there are depends on the machine's speed; they count "n/m".
    said = [line for line in done.stderr.splitlines() if not re.search(r": \d+/\d+", line)]
    measured = ["perplexity", "Perplexity"]  # on the second text
    step = ["step", "calibration:", *measured]
    expected = ["opening", "measuring", *measured, *step, *step, "writing", "reopening"]
    assert [line.split()[0] for line in said] == expected
    assert sorted(entry.name for entry in here.iterdir()) == ["out", "out.log", "recipe.yaml"]


def test_a_refusal(tmp_path: Path) -> None:
    done = modwright("inspect", "gone", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("modwright: cannot open 'gone': not a directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "script",
    [
        "import modwright; assert modwright.__version__",
        "import modwright; dir(modwright); modwright.__all__",
        "from modwright.cli import main; sys.argv[1:] = ['--help']; run(main)",
        "from modwright.cli import main; sys.argv[1:] = ['--version']; run(main)",
        "from modwright.cli import main; sys.argv[1:] = ['cost', '--help']; run(main)",
        "from modwright.cli import main; sys.argv[1:] = ['inspekt']; run(main)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(script: str, tmp_path: Path) -> None:
    prepared = f"""\
import io, sys
def run(main):
    sys.stdout = sys.stderr = io.StringIO()
    try:
        main()
    except SystemExit:
        pass
{script}
sys.__stdout__.write(" ".join(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", prepared],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        check=True,
    )
    assert done.stdout == ""


def test_a_closed_pipe_is_no_crash(tmp_path: Path) -> None:
    """``modwright papers | head`` ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modwright", "papers", "--json"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(),
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""
