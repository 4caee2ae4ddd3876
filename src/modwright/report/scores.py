"""Scores of the evaluation harness in a report: columns, a table with errors, and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from modwright.core.formatting import difference_text, score_text
from modwright.report.data import Report, Stage
from modwright.report.metrics import Metric, differing

__all__ = ["ScoreTable", "score_metrics", "score_sentences", "score_table"]


class ScoreMetric(Metric):
    """A column for one score; a change is a difference, in the score's own unit."""

    def of(self, stage: Stage) -> float | None:
        return _score(stage, self.name).get("value")

    def is_broken(self, stage: Stage) -> bool:
        return bool(_score(stage, self.name)) and not (stage.harness or {}).get("finite", True)

    def shift(self, before: Stage, stage: Stage) -> float | None:
        one, two = self.of(before), self.of(stage)
        return None if one is None or two is None else two - one


def score_metrics(report: Report) -> list[Metric]:
    """A column for every score that was asked for by name; tasks of a group stand in the table."""
    return [_column(score) for score in _known(report) if score.get("asked", True)]


def _column(score: Mapping[str, Any]) -> Metric:
    name, higher = score["name"], score.get("higher_is_better")
    return ScoreMetric(
        "harness",
        name,
        name,
        score_text,
        difference_text,
        lower_is_better=None if higher is None else not higher,
        meaning=f"{score.get('metric', 'score')} on {_asked(score)}, as {_harness(score)} gives "
        "it; its change is a difference.",
    )


def _asked(score: Mapping[str, Any]) -> str:
    """How much of which task: ``capitals (version 1.0), 12 documents, 0-shot``."""
    shots = score.get("num_fewshot")
    told = f"{score.get('task', score['name'])} (version {score.get('version')})"
    told += f", {score.get('documents', 0):,} documents"
    return told if shots is None else f"{told}, {shots}-shot"


class ScoreTable(NamedTuple):
    """All scores, one row each: what was asked, then one cell per stage; and by which harness."""

    harness: str
    heads: list[str]
    rows: list[list[str]]


def score_table(report: Report) -> ScoreTable | None:
    """Every score with its standard error in every stage; None where there are none."""
    known = _known(report)
    rows = []
    for score in known:
        column, shots = _column(score), score.get("num_fewshot")
        facts = [score.get("version"), "mixed" if shots is None else shots, score.get("documents")]
        cells = [column.cell(stage) + _error(stage, column) for stage in report.stages]
        rows.append([column.name, *map(str, facts), *cells])
    versions = dict.fromkeys(map(_harness, known))
    heads = ["Score", "Version", "Shots", "Documents", *(stage.name for stage in report.stages)]
    return ScoreTable(", ".join(versions), heads, rows) if rows else None


def _error(stage: Stage, column: Metric) -> str:
    error = _score(stage, column.name).get("stderr")
    return "" if error is None or column.of(stage) is None else f" ± {score_text(error)}"


def score_sentences(before: Stage, after: Stage) -> Iterator[str]:
    """What became of every score that was asked for."""
    odd = differing(before, after, "harness")
    if odd:
        yield (
            "Scores before and after cannot be compared: they were taken differently "
            f"({', '.join(odd)})."
        )
        return
    for score in _scores(after):
        if score.get("asked", True):
            yield f"{score['name']} {_course(before, after, score)}."


def _course(before: Stage, after: Stage, score: Mapping[str, Any]) -> str:
    said = f"({_asked(score)}, {score.get('harness', 'harness')})"
    value = score.get("value")
    if value is None:
        is_broken = _column(score).is_broken(after)
        why = "cannot be said: the model gives NaN" if is_broken else "is not a finite number"
        return f"{why} {said}"
    earlier = _score(before, score["name"])
    old = earlier.get("value")
    if before is after or old is None:
        return f"is {score_text(value)} {said}"
    if difference_text(value - old) == "0.0000":
        return f"stayed at {score_text(value)} {said}"
    course = "rose" if value > old else "fell"
    line = f"{course} from {score_text(old)} to {score_text(value)} {said}"
    noise = _error_of_difference(earlier, score)
    if noise is not None and abs(value - old) <= noise:
        line += f": within the standard error of the difference, {score_text(noise)}"
    return line


def _error_of_difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> float | None:
    """As if the two had been taken on different documents, which errs on the large side."""
    first, second = one.get("stderr"), two.get("stderr")
    return None if first is None or second is None else math.hypot(first, second)


def _known(report: Report) -> list[Mapping[str, Any]]:
    """Scores of each name, as the first stage has them that has any."""
    found: dict[str, Mapping[str, Any]] = {}
    for score in (score for stage in report.stages for score in _scores(stage)):
        found.setdefault(score["name"], score)
    return list(found.values())


def _harness(score: Mapping[str, Any]) -> str:
    return str(score.get("harness", "the harness"))


def _scores(stage: Stage) -> list[Mapping[str, Any]]:
    return list((stage.harness or {}).get("scores") or ())


def _score(stage: Stage, name: str) -> Mapping[str, Any]:
    return next((score for score in _scores(stage) if score["name"] == name), {})
