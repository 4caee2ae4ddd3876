"""What the web page, the Markdown page and the model card share beside the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from modwright.core.formatting import MISSING
from modwright.report.data import Report

__all__ = [
    "Measured",
    "flat",
    "format_value",
    "layer_cell",
    "measured",
    "other_reasons",
    "per_layer",
    "recipe_yaml",
    "samples",
    "subtitle",
]

_MOST_CHARACTERS = 2_000


@dataclass(frozen=True)
class Measured:
    """How numbers of one kind were measured, and which stages it holds for.

    Attributes:
        title: what was measured.
        stages: names of the stages; empty where it holds for all.
        recipe: the recipe, flat: name -> text.
    """

    title: str
    stages: tuple[str, ...]
    recipe: dict[str, str]


_MEASURED = (
    ("Perplexity", "quality", "recipe"),
    ("Agreement with the model as it came", "agreement", "recipe"),
    ("Harness scores", "harness", "recipe"),
    ("Cost (counted, not timed)", "cost", "recipe"),
    ("Speed (timed)", "speed", "recipe"),
    ("Sample", "sample", "settings"),
)


def measured(report: Report) -> list[Measured]:
    """Every recipe of the report once, with the stages it was used for."""
    found = []
    for title, group, key in _MEASURED:
        holders: list[tuple[dict[str, Any], list[str]]] = []
        having = [stage for stage in report.stages if (getattr(stage, group) or {}).get(key)]
        for stage in having:
            recipe = getattr(stage, group)[key]
            names = next((names for known, names in holders if known == recipe), None)
            if names is None:
                holders.append((recipe, [stage.name]))
            else:
                names.append(stage.name)
        for recipe, names in holders:
            only = () if len(names) == len(report.stages) else tuple(names)
            found.append(Measured(title, only, flat(recipe)))
    return found


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as one level of readable names and texts.

    Example:
        >>> flat({"batch": 1, "window": {"stride": None, "bos": False}})
        {'batch': '1', 'window, stride': 'none', 'window, bos': 'no'}
    """
    lines: dict[str, str] = {}
    for name, value in values.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines.update({f"{label}, {inner}": text for inner, text in flat(value).items()})
        else:
            lines[label] = format_value(value)
    return lines


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


def subtitle(report: Report) -> str:
    """Model, family, number of steps and date, as far as the report has them.

    Example:
        >>> from modwright.report import Stage
        >>> subtitle(Report("r", {"name": "small", "family": "llama"}, stages=[Stage("before")]))
        'small (llama), 0 steps'
    """
    name, family = report.model.get("name"), report.model.get("family")
    model = f"{name} ({family})" if name and family else name
    steps = len(report.stages) - 1
    said = [model, f"{steps} step{'' if steps == 1 else 's'}", report.created]
    return ", ".join(str(word) for word in said if word)


def recipe_yaml(report: Report) -> str:
    """The resolved recipe as YAML, in its own order."""
    return yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True, width=88).rstrip()


def samples(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """The samples of the first and the last stage that have one, with a heading."""
    having = [stage for stage in report.stages if stage.sample is not None]
    chosen = having[:1] + having[1:][-1:]
    return [
        ("before" if stage is report.before else f"after step {stage.name}", stage.sample or {})
        for stage in chosen
    ]


def per_layer(reasons: Mapping[str, Any], layers: int) -> dict[str, list[Any]]:
    """The lists among a method's reasons that have one plain entry per layer, by readable name.

    A list with one mapping per layer gives a column for each of its keys.

    Example:
        >>> per_layer({"scores": {"mlp": [0.5, 0.7]}, "removed": {"mlp": [1]}}, 2)
        {'scores, mlp': [0.5, 0.7]}
        >>> per_layer({"blocks": [{"rank": 4}, {"rank": 3, "error": 0.1}]}, 2)
        {'blocks, rank': [4, 3], 'blocks, error': [None, 0.1]}
    """
    return {name: values for name, values in _lists(reasons) if len(values) == layers > 1}


def _lists(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _lists(value, f"{label}, ")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            keys = dict.fromkeys(key for entry in value for key in entry)
            columns = {key: [entry.get(key) for entry in value] for key in keys}
            yield from _lists(columns, f"{label}, ")
        elif isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
            yield label, value


def layer_cell(value: Any) -> str:
    """An entry of a per-layer list; a layer without one shows a dash."""
    return MISSING if value is None else format_value(value)


def other_reasons(reasons: Mapping[str, Any], layers: Iterable[str]) -> dict[str, str]:
    """The reasons that no per-layer column shows, as text; very long ones are cut and say so.

    Example:
        >>> other_reasons({"scores": {"mlp": [0.5, 0.7]}, "removed": {"mlp": [1]}}, ["scores, mlp"])
        {'removed, mlp': '1'}
    """
    rest = flat(_without(reasons, set(layers)))
    return {name: _cut(text) for name, text in rest.items()}


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} … (the rest stands in report.json)"


def _without(values: Mapping[str, Any], shown: set[str], prefix: str = "") -> dict[str, Any]:
    """The reasons that no per-layer table shows."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            inner = _without(value, shown, f"{label}, ")
            if inner or not value:
                rest[name] = inner
        elif label not in shown and not any(name.startswith(f"{label}, ") for name in shown):
            rest[name] = value
    return rest
