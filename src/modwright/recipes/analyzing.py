"""One analysis of a model or a file, as the command runs it: opened, measured, written."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modwright.analysis import Finding, Subject, analyze, make_analysis
from modwright.core.errors import InvalidInputError
from modwright.core.files import require_new_directory
from modwright.core.options import one_line
from modwright.core.progress import SILENT, Progress
from modwright.recipes.plans import calibration_windows
from modwright.recipes.schema import Data
from modwright.report.findings import write_finding

__all__ = ["run_analysis"]


def run_analysis(
    name: str,
    options: Mapping[str, Any],
    source: str,
    out: Path,
    *,
    data: Mapping[str, Any],
    opened: Mapping[str, Any],
    force: bool = False,
    progress: Progress = SILENT,
) -> tuple[Finding, list[str]]:
    """Opens, looks, and writes what was found with its figures, whole or not at all.

    What takes long is kept beside ``out`` until then, so that the same command goes on.

    Args:
        source: a model or a file, as the analysis reads it.
        data: ``data`` (a text), ``images`` (a folder), and ``windows``, ``length`` and ``seed``.
        opened: how a model is opened.

    Raises:
        ModwrightError: the analysis, its options, the source or the data are refused.
    """
    asked = make_analysis(name, options)
    require_new_directory(out, force)
    subject = asked.open(source, progress=progress, **opened)
    if (reason := asked.unsupported(subject)) is not None:
        raise InvalidInputError(f"{name}: {subject.name} {reason}")
    if asked.needs_data:
        subject = dataclasses.replace(subject, data=_data(name, subject, data))
    work = out.with_name(f".{out.name}.{name}")
    found = analyze(subject, asked, directory=work, progress=progress)
    plan = None if subject.model is None else found.plan(subject.anatomy)
    written = write_finding(found, out, plan, force=force)
    shutil.rmtree(work, ignore_errors=True)
    return found, written


def _data(name: str, subject: Subject, given: Mapping[str, Any]) -> Any:
    reads: Any = subject.anatomy.family.inputs()
    asked = {key: value for key, value in given.items() if value is not None}
    images = asked.pop("images", None)
    if images is not None and not reads.is_text:
        asked["data"] = {"images": images, "image_size": reads.size[0]}
    elif images is not None or not reads.is_text:
        wanted = "text: --data" if reads.is_text else "images: --images FOLDER"
        raise InvalidInputError(f"{name}: {subject.name} reads {wanted}")
    try:
        return calibration_windows(subject, name, Data.model_validate(asked))
    except ValidationError as error:
        raise InvalidInputError(f"{name}: {one_line(error)}") from None
