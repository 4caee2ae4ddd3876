"""``modwright study`` and ``modwright compare``: one table, one figure, refusals in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wordy import write_text

Command = Callable[[str], Any]

STUDY = """\
recipe:
  model: preset:byte-llama
  steps:
    - {method: drop, parts: "attention[1]"}
  evaluate: {perplexity: {data: words.txt, windows: 5, length: 32}, generation: null, speed: null}
arms:
  steps.0.parts: ["attention[1]", "mlp[1]"]
"""


@pytest.fixture
def studied(place: Path) -> Path:
    write_text(place / "words.txt", 400)
    (place / "s.yaml").write_text(STUDY)
    return place


def test_a_study_is_printed_and_its_cells_are_compared(command: Command, studied: Path) -> None:
    done = command("study s.yaml -o out")
    assert done.code == 0, done.err
    assert done.out.count("parts=") >= 2 and "The lowest perplexity: " in done.out
    assert "written: out/report.html" in done.err
    again = command("study s.yaml -o out --json")
    found = json.loads(again.out)
    assert "2 finished cells taken over" in again.err
    assert [row["name"] for row in found["rows"]] == ["parts=attention[1]", "parts=mlp[1]"]
    cells = [str(file.parent) for file in sorted(studied.glob("out/cells/*/seed-0/config.json"))]
    line = f"compare {' '.join(cells)} preset:byte-llama --baseline preset:byte-llama"
    done = command(f"{line} -o both")
    assert done.code == 0, done.err
    assert done.out.count("┏") == 1 and done.out.count("│ ") > 3
    figures = {file.name for file in Path("both").iterdir() if file.suffix in (".png", ".svg")}
    assert figures == {"figure.png", "figure.svg"}
    refused = command(f"{line} -o both")
    assert refused.code == 2 and "exists and is not empty" in refused.err
    assert command(f"{line} -o both --force --json").code == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("study s.yaml -o out --set arms=3", "--set 'arms=3', arms: "),
        ("study s.yaml -o out --set seeds=[a]", "--set 'seeds=[a]', seeds.0: "),
        ("study s.yaml -o out --workers 0", "--workers"),
        ("study gone.yaml -o out", "cannot read the recipe 'gone.yaml'"),
        ("study gone -o out", "unknown study 'gone'; valid values: "),
        ("study s.yaml -o .", "holds something else than a study"),
        ("compare preset:byte-llama", "at least two models"),
        ("compare preset:byte-llama gone", "gone"),
        ("compare preset:byte-llama preset:tiny-llama --metric perplexitie", "perplexity"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    command: Command, studied: Path, line: str, says: str
) -> None:
    before = sorted(studied.iterdir())
    done = command(line)
    told = [one for one in done.err.splitlines() if one.startswith("modwright: ")]
    assert done.code == 2 and len(told) == 1 and says in told[0], done.err
    assert sorted(studied.iterdir()) == before
