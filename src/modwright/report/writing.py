"""Writing a report to disk: each file is complete or not there."""

from __future__ import annotations

import json
from pathlib import Path

from modwright.core.errors import CheckpointError
from modwright.core.files import write_file
from modwright.core.reading import read_json
from modwright.report.data import Report
from modwright.report.pages import render_html, render_markdown

__all__ = ["read_report", "write_report"]


def write_report(report: Report, directory: Path) -> dict[str, Path]:
    """Writes report.json, report.md and report.html, in place of those of an earlier run.

    Everything is rendered before the first file is touched. The result names the files by what they
    are: ``"json"``, ``"markdown"`` and ``"html"``.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    directory = Path(directory)
    stored = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {
        "json": ("report.json", stored),
        "markdown": ("report.md", render_markdown(report)),
        "html": ("report.html", render_html(report)),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write the report to {directory}: {error.strerror}") from None
    return {kind: write_file(directory / name, text) for kind, (name, text) in texts.items()}


def read_report(path: Path) -> Report:
    """Reads a report.json, or the one in a folder.

    Raises:
        CheckpointError: there is no readable report.
        InvalidInputError: it holds what no report of this version has.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        stored = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds no readable report: {error}") from None
    return Report.from_dict(stored)
