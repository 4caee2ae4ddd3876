"""Scores of the evaluation harness in a report: columns, a table with errors, and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modwright.core.formatting import MISSING, difference_text, score_text
from modwright.report.data import Report, Stage
from modwright.report.metrics import Metric, differing

__all__ = ["ScoreTable", "score_metrics", "score_sentences", "score_table"]


@dataclass(frozen=True)
class ScoreMetric(Metric):
    """A column for one score; a change is a difference, in the score's own unit."""

    def of(self, stage: Stage) -> float | None:
        value: float | None = _score(stage, self.name).get("value")
        return value

    def is_broken(self, stage: Stage) -> bool:
        return bool(_score(stage, self.name)) and not (stage.harness or {}).get("finite", True)

    def shift(self, before: Stage, stage: Stage) -> float | None:
        one, two = self.of(before), self.of(stage)
        return None if one is None or two is None else two - one


def score_metrics(report: Report) -> list[Metric]:
    """A column for every score that was asked for by name; tasks of a group stand in the table."""
    found: dict[str, Metric] = {}
    for stage in report.stages:
        for score in _scores(stage):
            if score.get("asked", True) and score["name"] not in found:
                found[score["name"]] = _column(score)
    return list(found.values())


def _column(score: Mapping[str, Any]) -> Metric:
    higher = score.get("higher_is_better")
    return ScoreMetric(
        score["name"],
        "harness",
        score["name"],
        score_text,
        difference_text,
        "lower",
        "higher",
        None if higher is None else not higher,
        f"{score.get('metric', 'score')} on {_asked(score)}, as "
        f"{score.get('harness', 'the harness')} gives it; its change is a difference.",
    )


def _asked(score: Mapping[str, Any]) -> str:
    """How much of which task: ``capitals (version 1.0), 12 documents, 0-shot``."""
    shots = score.get("num_fewshot")
    parts = [
        f"{score.get('task', score['name'])} (version {score.get('version')})",
        f"{score.get('documents', 0):,} documents",
    ]
    return ", ".join([*parts, f"{shots}-shot"] if shots is not None else parts)


@dataclass(frozen=True)
class ScoreTable:
    """All scores, one row each: what was asked, then one cell per stage; and by which harness."""

    harness: str
    heads: list[str]
    rows: list[list[str]]


def score_table(report: Report) -> ScoreTable | None:
    """Every score with its standard error in every stage; None where there are none."""
    known: dict[str, Mapping[str, Any]] = {}
    for stage in report.stages:
        for score in _scores(stage):
            known.setdefault(score["name"], score)
    if not known:
        return None
    stages = [stage.name for stage in report.stages]
    rows = []
    for name, score in known.items():
        shots = score.get("num_fewshot")
        facts = [score.get("version"), "mixed" if shots is None else shots, score.get("documents")]
        cells = [_cell(stage, name) for stage in report.stages]
        rows.append([name, *map(str, facts), *cells])
    versions = dict.fromkeys(str(score.get("harness", "the harness")) for score in known.values())
    heads = ["Score", "Version", "Shots", "Documents", *stages]
    return ScoreTable(", ".join(versions), heads, rows)


def _cell(stage: Stage, name: str) -> str:
    score = _score(stage, name)
    if not score:
        return MISSING
    if score.get("value") is None:
        return "not finite" if not (stage.harness or {}).get("finite", True) else MISSING
    error = score.get("stderr")
    return score_text(score["value"]) + (f" ± {score_text(error)}" if error is not None else "")


def score_sentences(before: Stage, after: Stage) -> Iterator[str]:
    """What became of every score that was asked for."""
    if after.harness is None:
        return
    odd = differing(before, after, "harness")
    if odd and before is not after:
        yield (
            "Scores before and after cannot be compared: they were taken differently "
            f"({', '.join(odd)})."
        )
        return
    for score in _scores(after):
        if score.get("asked", True):
            yield _sentence(before, after, score)


def _sentence(before: Stage, after: Stage, score: Mapping[str, Any]) -> str:
    said = f"({_asked(score)}, {score.get('harness', 'harness')})"
    value = score.get("value")
    if value is None:
        why = (
            "is not a finite number"
            if (after.harness or {}).get("finite", True)
            else ("cannot be said: the model gives NaN")
        )
        return f"{score['name']} {why} {said}."
    earlier = _score(before, score["name"])
    old = earlier.get("value")
    if before is after or old is None:
        return f"{score['name']} is {score_text(value)} {said}."
    change = difference_text(value - old)
    if change == "0.0000":
        return f"{score['name']} stayed at {score_text(value)} {said}."
    line = (
        f"{score['name']} {'rose' if value > old else 'fell'} from {score_text(old)} to "
        f"{score_text(value)} {said}"
    )
    noise = _error_of_difference(earlier, score)
    if noise is not None and abs(value - old) <= noise:
        line += f": within the standard error of the difference, {score_text(noise)}"
    return f"{line}."


def _error_of_difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> float | None:
    """As if the two had been taken on different documents, which errs on the large side."""
    errors = (one.get("stderr"), two.get("stderr"))
    if errors[0] is None or errors[1] is None:
        return None
    return math.hypot(errors[0], errors[1])


def _scores(stage: Stage) -> list[Mapping[str, Any]]:
    return list((stage.harness or {}).get("scores") or ())


def _score(stage: Stage, name: str) -> Mapping[str, Any]:
    return next((score for score in _scores(stage) if score["name"] == name), {})
