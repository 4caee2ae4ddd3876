"""The tables of a report beside the columns: recipes, samples, runtimes, reasons by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from modwright.core.formatting import MISSING
from modwright.metrics.registry import METRICS, in_order
from modwright.report.data import Report, Stage

__all__ = ["SERVING_HEADS", "Measured", "by_layer", "flat", "format_value", "grids", "measured"]
__all__ += ["sample_of", "samples", "serving_rows"]

SERVING_HEADS = ("Runtime", "Supported", "Notes")
_MOST_CHARACTERS = 2_000


class Measured(NamedTuple):
    """How numbers of one kind were measured, in stages of these names; without any, in all."""

    title: str
    stages: tuple[str, ...]
    recipe: dict[str, str]


def measured(report: Report) -> list[Measured]:
    """Every recipe of the report once, with the stages it was used for."""
    found = []
    for title, group in _groups(report):
        holders: list[tuple[dict[str, Any], list[str]]] = []
        for stage in report.stages:
            values = stage.cost if group is None else stage.measured.get(group) or {}
            if recipe := values.get("recipe") or values.get("settings"):
                names = next((names for known, names in holders if known == recipe), None)
                if names is None:
                    holders.append((recipe, names := []))
                names.append(stage.name)
        for recipe, names in holders:
            only = () if len(names) == len(report.stages) else tuple(names)
            found.append(Measured(title, only, flat(recipe)))
    return found


def _groups(report: Report) -> Iterator[tuple[str, str | None]]:
    """Title and name of what was measured; None is the counted cost."""
    known = in_order()
    yield from ((metric.title, metric.name) for metric in known if metric.is_quality)
    yield "Cost (counted, not timed)", None
    yield from ((metric.title, metric.name) for metric in known if not metric.is_quality)
    names = dict.fromkeys(name for stage in report.stages for name in stage.measured)
    yield from ((name, name) for name in names if name not in METRICS)


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as one level of readable names and texts.

    Example:
        >>> flat({"batch": 1, "window": {"stride": None, "bos": False}})
        {'batch': '1', 'window, stride': 'none', 'window, bos': 'no'}
    """
    return {label: format_value(value) for label, value in _leaves(values)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{label}, ")
        else:
            yield label, value


def format_value(value: Any) -> str:
    """A plain value as text: yes, no, none, numbers with separators, lists with commas.

    Example:
        >>> format_value([2048, True, None])
        '2,048, yes, none'
    """
    if isinstance(value, list):
        return ", ".join(format_value(entry) for entry in value) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {text}" for name, text in flat(value).items()) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def samples(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """The samples of the first and the last stage that have one, with a heading."""
    having = [
        ("before" if stage is report.before else f"after step {stage.name}", dict(sample))
        for stage in report.stages
        if (sample := sample_of(stage)) is not None
    ]
    return having[:1] + having[1:][-1:]


def sample_of(stage: Stage) -> Mapping[str, Any] | None:
    """The text that a stage has to show: ``prompt``, ``text``, ``repetition``, ``settings``."""
    texts = (
        metric.sample_of(stage.measured[metric.name])
        for metric in in_order()
        if metric.name in stage.measured
    )
    return next((text for text in texts if text is not None), None)


def serving_rows(stage: Stage) -> list[tuple[str, str, str]]:
    """Where a model runs: runtime, answer, and the reason with the command that makes its files.

    Example:
        >>> told = {"answer": "after export", "why": "one file", "command": "modwright export A"}
        >>> serving_rows(Stage("before", servable={"llama.cpp": told}))
        [('llama.cpp', 'after export', 'one file: `modwright export A`')]
    """
    rows = []
    for runtime, told in stage.servable.items():
        reasons = [told["why"], f"`{told['command']}`" if told["command"] else ""]
        rows.append((runtime, told["answer"] or MISSING, ": ".join(filter(None, reasons))))
    return rows


def by_layer(
    reasons: Mapping[str, Any], layers: int
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """A method's reasons with one plain entry per layer, by readable name, and the others as text.

    A list with one mapping per layer gives a column for each of its keys. A very long text is cut
    and says so.

    Example:
        >>> by_layer({"scores": {"mlp": [0.5, 0.7]}, "removed": {"mlp": [1]}}, 2)
        ({'scores, mlp': [0.5, 0.7]}, {'removed, mlp': '1'})
        >>> by_layer({"blocks": [{"rank": 4}, {"rank": 3, "error": 0.1}]}, 2)[0]
        {'blocks, rank': [4, 3], 'blocks, error': [None, 0.1]}
    """
    columns: dict[str, list[Any]] = {}
    rest = {}
    for label, value in _leaves(reasons):
        is_list = isinstance(value, list) and len(value) == layers > 1
        found = dict(_columns(label, value)) if is_list else {}
        columns |= found
        if not found:
            text = format_value(value)
            cut = f"{text[:_MOST_CHARACTERS]} … (the rest stands in report.json)"
            rest[label] = text if len(text) <= _MOST_CHARACTERS else cut
    return columns, rest


def grids(reasons: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The reasons that are tables, rows of the same plain entries by name, and the others.

    Example:
        >>> curve = {"0 tokens": {"perplexity": 40.0}, "512 tokens": {"perplexity": 36.5}}
        >>> found, others = grids({"steps": 2, "on lee": curve})
        >>> list(found), others
        (['on lee'], {'steps': 2})
    """
    found = {name: dict(value) for name, value in reasons.items() if _is_grid(value)}
    return found, {name: value for name, value in reasons.items() if name not in found}


def _is_grid(value: Any) -> bool:
    rows = list(value.values()) if isinstance(value, Mapping) else []
    if len(rows) < 2 or not all(isinstance(row, Mapping) and row for row in rows):
        return False
    plain = not any(isinstance(one, list | dict) for row in rows for one in row.values())
    return plain and len({tuple(row) for row in rows}) == 1


def _columns(label: str, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            inner = f"{label}, {key}".replace("_", " ")
            yield from _columns(inner, [value.get(key) for value in values])
    elif not any(isinstance(value, list | dict) for value in values):
        yield label, values
