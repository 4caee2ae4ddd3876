"""Finished models beside each other: what their reports hold, or what is measured now."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.metrics.registry import Metric, Subject, in_order
from modwright.recipes.measure import measure_stage
from modwright.recipes.quality import subject_of
from modwright.recipes.run_log import versions
from modwright.recipes.runner import Listener, unheard
from modwright.recipes.schema import Evaluate
from modwright.report import Report, read_report
from modwright.report.comparison import Comparison, Measured, Row

__all__ = ["compare"]


def compare(
    models: Sequence[str],
    baseline: str | None = None,
    metrics: Sequence[Metric] = (),
    *,
    dtype: str | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
    log: Listener = unheard,
) -> Comparison:
    """Finished models in one table.

    A result of ``modwright run`` has its numbers in its report. A model without a report is
    measured as the first of the reports says, or by the metrics that recipes measure by default.
    Where metrics are given, all models are measured by them, now. Timings are left out, as they
    would be of different moments.

    Args:
        models: directories, packaged names and all else that opens.
        baseline: the one that the others are compared with; the first by default.
        metrics: in place of what the reports hold.
        dtype, device: of those that are measured.

    Raises:
        InvalidInputError: fewer than two models, one twice, a baseline that is none of them, or a
            metric that a model cannot have.
    """
    if len(models) < 2:
        raise InvalidInputError("name at least two models to compare")
    if baseline is not None:
        if baseline not in models:
            raise InvalidInputError(f"--baseline {baseline!r} is none of {', '.join(models)}")
        models = [baseline, *(one for one in models if one != baseline)]
    names = _names(models)
    reports = {} if metrics else {one: found for one in models if (found := _report_of(one))}
    asked = _asked(metrics, next(iter(reports.values()), None))
    rows: list[Row] = []
    reference: Subject | None = None
    for model, name in zip(models, names):
        if model in reports:
            log(f"{model}: read from its report")
            rows.append(Row(name, (Measured("", reports[model].after, place=model),)))
            continue
        log(f"{model}: measured now")
        opened = open_checkpoint(model, dtype=dtype, device=device, progress=progress)
        subject = subject_of(opened, reference)
        stage = measure_stage(subject, asked, progress, log, name=name)
        if not rows and any(one.compares for one in asked.built.values()):
            reference = replace(subject, found=stage.measured)
        rows.append(Row(name, (Measured("", stage, place=model),)))
    facts = {"created": datetime.date.today().isoformat(), "versions": versions()}
    return Comparison(f"{len(rows)} models", tuple(rows), facts=facts)


def _report_of(model: str) -> Report | None:
    place = Path(model)
    return read_report(place) if (place / "report.json").is_file() else None


def _asked(metrics: Sequence[Metric], report: Report | None) -> Evaluate:
    """What is measured of a model: quality alone."""
    told: Mapping[str, Any] = {} if report is None else report.recipe.get("evaluate") or {}
    if metrics:
        told = {one.name: asdict(one) for one in metrics}  # type: ignore[call-overload]
    left_out = {kind.name: None for kind in in_order() if metrics or not kind.is_quality}
    return Evaluate.model_validate({**left_out, **told} if metrics else {**told, **left_out})


def _names(models: Sequence[str]) -> list[str]:
    """As many last parts of each path as tell them apart."""
    for at, model in enumerate(models):
        if model in models[:at]:
            raise InvalidInputError(f"{model!r} stands there twice; name each model once")
    parts = [Path(model).parts for model in models]
    for count in range(1, max(map(len, parts))):
        short = ["/".join(one[-count:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return list(models)
