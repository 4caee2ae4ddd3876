"""Each of 333 malformed inputs is refused in one line, at once and without memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warm_processes import run_python

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "malformed.py"
SECONDS, MEGABYTES = 5.0, 500


def test_fault_B21_malformed_inputs_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run_python([str(SCRIPT), str(tmp_path)])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(found) >= 333
    odd = []
    for one in found:
        lines = [line for line in one["said"].splitlines() if line.startswith("modwright:")]
        quick = one["seconds"] <= SECONDS and one["megabytes"] <= MEGABYTES
        if one["code"] != 2 or len(lines) != 1 or not quick:
            odd.append(one)
    assert not odd, json.dumps(odd[:10], indent=1)
    for one in found[:: len(found) // 10][:10]:
        alone = run_python(["-m", "modwright.cli", *one["words"]], timeout=60, library=True)
        last = alone.stderr.strip().splitlines()[-1]
        assert alone.returncode == 2 and last.startswith("modwright: "), one
        assert "Traceback" not in alone.stderr
