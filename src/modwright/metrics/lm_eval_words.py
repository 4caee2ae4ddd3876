"""Scores of lm-eval in a report: columns, a table with errors, and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modwright.core.formatting import difference_text, score_text
from modwright.metrics.column import DifferenceColumn, StageLike, differing

__all__ = ["ScoreTable", "score_columns", "score_lines", "score_sentences", "score_table"]

_GROUP = "lm_eval"


class ScoreColumn(DifferenceColumn):
    """A column for one score; a change is a difference, in the score's own unit."""

    def of(self, stage: StageLike) -> float | None:
        return _score(stage, self.name).get("value")

    def is_broken(self, stage: StageLike) -> bool:
        return bool(_score(stage, self.name)) and not self.stored(stage).get("finite", True)


def score_columns(stages: Sequence[StageLike]) -> list[ScoreColumn]:
    """A column for every score that was asked for by name; tasks of a group stand in the table."""
    return [_column(score) for score in _known(stages) if score.get("asked", True)]


def _column(score: Mapping[str, Any]) -> ScoreColumn:
    name, higher = score["name"], score.get("higher_is_better")
    return ScoreColumn(
        _GROUP,
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
    """All scores, one row each: what was asked, then one cell per stage; and a note on them."""

    note: str
    heads: list[str]
    rows: list[list[str]]


def score_table(stages: Sequence[StageLike]) -> ScoreTable | None:
    """Every score with its standard error in every stage; None where there are none."""
    known = _known(stages)
    rows = []
    for score in known:
        column, shots = _column(score), score.get("num_fewshot")
        facts = [score.get("version"), "mixed" if shots is None else shots, score.get("documents")]
        cells = [column.cell(stage) + _error(stage, column) for stage in stages]
        rows.append([column.name, *map(str, facts), *cells])
    versions = dict.fromkeys(map(_harness, known))
    heads = ["Score", "Version", "Shots", "Documents", *(stage.name for stage in stages)]
    note = f"As {', '.join(versions)} gives them, with one standard error."
    return ScoreTable(note, heads, rows) if rows else None


def _error(stage: StageLike, column: ScoreColumn) -> str:
    error = _score(stage, column.name).get("stderr")
    return "" if error is None or column.of(stage) is None else f" ± {score_text(error)}"


def score_sentences(before: StageLike, after: StageLike) -> Iterator[str]:
    """What became of every score that was asked for."""
    odd = differing(before, after, _GROUP)
    if odd:
        yield (
            "Scores before and after cannot be compared: they were taken differently "
            f"({', '.join(odd)})."
        )
        return
    for score in _scores(after):
        if score.get("asked", True):
            yield f"{score['name']} {_course(before, after, score)}."


def _course(before: StageLike, after: StageLike, score: Mapping[str, Any]) -> str:
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


def _known(stages: Sequence[StageLike]) -> list[Mapping[str, Any]]:
    """Scores of each name, as the first stage has them that has any."""
    found: dict[str, Mapping[str, Any]] = {}
    for score in (score for stage in stages for score in _scores(stage)):
        found.setdefault(score["name"], score)
    return list(found.values())


def _harness(score: Mapping[str, Any]) -> str:
    return str(score.get("harness", "the harness"))


def _scores(stage: StageLike) -> list[Mapping[str, Any]]:
    return list((stage.measured.get(_GROUP) or {}).get("scores") or ())


def _score(stage: StageLike, name: str) -> Mapping[str, Any]:
    return next((score for score in _scores(stage) if score["name"] == name), {})


def score_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Every score with its error, its version and its documents; tasks of a group are indented."""
    for score in values.get("scores") or ():
        start = "" if score.get("asked", True) else "  "
        value = score.get("value")
        shown = "not finite" if value is None else score_text(value)
        if value is not None and score.get("stderr") is not None:
            shown += f" ± {score_text(score['stderr'])}"
        shots = score.get("num_fewshot")
        told = [_harness(score), f"version {score.get('version')}"]
        told += [] if shots is None else [f"{shots}-shot"]
        told.append(f"{score.get('documents', 0):,} documents")
        yield f"{start}{score['name']} {shown} ({', '.join(told)})"
