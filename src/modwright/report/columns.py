"""The columns of the before/after table, in their order: counted costs, and those of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from modwright.core.formatting import (
    MISSING,
    bytes_text,
    count_text,
    percent_text,
    scaled_text,
)
from modwright.metrics.column import Column
from modwright.metrics.registry import in_order
from modwright.report.data import Report, Stage

__all__ = ["all_columns", "quality_columns", "shown_columns", "stage_numbers"]
__all__ += ["words_of"]

_FEWER = ("fewer", "more")
_SMALLER = ("smaller", "larger")


def _cost(
    name: str,
    label: str,
    text: Callable[[float], str],
    words: tuple[str, str],
    meaning: str,
    headline: Literal["always", ""] = "",
) -> Column:
    less, more = words
    return Column(
        "cost", name, label, text, percent_text, less, more, meaning=meaning, headline=headline
    )


_SIZE = (
    _cost(
        "parameters",
        "Parameters",
        count_text,
        _FEWER,
        "Numbers that the model has learned; a table used twice counts once.",
        "always",
    ),
    _cost(
        "stored_bytes",
        "Weights on disk",
        bytes_text,
        _SMALLER,
        "Bytes of the weight files (1 MB is 1,000,000 bytes).",
        "always",
    ),
)
_WORK = (
    _cost(
        "prefill_macs",
        "Prefill MACs",
        scaled_text,
        _FEWER,
        "Multiplications with addition needed to read the prompt.",
    ),
    _cost(
        "decode_macs",
        "Decode MACs/token",
        scaled_text,
        _FEWER,
        "Multiplications with addition needed to write one more token.",
    ),
    _cost(
        "kv_bytes",
        "KV cache",
        bytes_text,
        _SMALLER,
        "Bytes that the attentions keep of the text read so far.",
    ),
    _cost(
        "state_bytes",
        "Recurrent state",
        bytes_text,
        _SMALLER,
        "Bytes that recurrent layers keep of the text read so far, however long it is.",
    ),
    _cost(
        "activation_bytes",
        "Activations",
        bytes_text,
        _SMALLER,
        "Bytes of the largest set of intermediate values alive at once while reading the prompt.",
    ),
)


def all_columns(report: Report | None = None) -> list[Column]:
    """Every column in its order: size, quality, work, and what is timed.

    Without a report those are left out that depend on what was measured.
    """
    stages = [] if report is None else report.stages
    columns = [(one, one.columns_of(stages)) for one in in_order()]
    quality = [column for one, found in columns if one.is_quality for column in found]
    others = [column for one, found in columns if not one.is_quality for column in found]
    return [*_SIZE, *quality, *_WORK, *others]


def shown_columns(report: Report) -> list[Column]:
    """The columns that at least one stage has."""

    def known(columns: Iterable[Column]) -> list[Column]:
        return [m for m in columns if any(m.cell(stage) != MISSING for stage in report.stages)]

    return known(all_columns(report))


def quality_columns(report: Report) -> list[Column]:
    """The columns of quality, measured or not."""
    return [
        column
        for metric in in_order()
        if metric.is_quality
        for column in metric.columns_of(report.stages)
    ]


def stage_numbers(stage: Stage) -> dict[str, float | None]:
    """The numbers of quality that were measured at a stage, by the names of their columns."""
    columns = (
        column
        for metric in in_order()
        if metric.is_quality and metric.name in stage.measured
        for column in metric.columns_of([stage])
    )
    return {
        one.name: one.of(stage)
        for one in columns
        if one.of(stage) is not None or one.is_broken(stage)
    }


def words_of(column: Column) -> tuple[str, str]:
    """What a number is called beside an axis, and which way is better, if that is known."""
    what = column.label.partition(",")[0].lower() if column.label.istitle() else column.label
    if column.lower_is_better is None:
        return what, ""
    return what, "lower" if column.lower_is_better else "higher"
