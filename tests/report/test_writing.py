from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.report import Report, read_report, write_report

from .small import report, stage


def test_three_files_are_written_and_nothing_else(example: Report, tmp_path: Path) -> None:
    written = write_report(example, tmp_path / "new" / "folder")
    assert {kind: path.name for kind, path in written.items()} == {
        "json": "report.json",
        "markdown": "report.md",
        "html": "report.html",
    }
    assert sorted(written.values()) == sorted((tmp_path / "new" / "folder").iterdir())
    assert read_report(written["json"]) == read_report(tmp_path / "new" / "folder") == example


def test_the_report_of_an_earlier_run_is_replaced(example: Report, tmp_path: Path) -> None:
    write_report(example, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(example, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(replace(example, title="another"), tmp_path)
    for path in tmp_path.iterdir():
        assert "another" in path.read_text(encoding="utf-8")


def test_json_is_strict(tmp_path: Path) -> None:
    write_report(report(stage(), stage("1 x", perplexity=float("nan"))), tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_folder_that_cannot_be_written_is_named(example: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write the report to .*file"):
        write_report(example, tmp_path / "file")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(CheckpointError, match="no readable report"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no readable report"):
        read_report(tmp_path)
    path.write_text("[]")
    with pytest.raises(InvalidInputError, match="a mapping of fields"):
        read_report(path)


def test_the_room_is_imported_without_heavy_libraries() -> None:
    code = (
        "import sys, modwright.report;"
        "print([n for n in ('torch', 'transformers', 'matplotlib', 'jinja2') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
