"""``evaluate:`` of a recipe: checked by the options of the metrics, and as JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from pydantic import Field, create_model

from modwright.core.errors import InvalidInputError, did_you_mean
from modwright.core.options import shown
from modwright.core.reading import parse_yaml
from modwright.metrics.registry import METRICS, Metric, in_order, old_keys
from modwright.recipes.options import options_of, summary, validated
from modwright.recipes.reading import Lines
from modwright.recipes.schema import Evaluate, Strict

__all__ = ["check_evaluate", "evaluate_schema", "metric_options", "named_metric"]

_REQUIRED = "false leaves it out where the model cannot have it"


def metric_options(kind: type[Metric]) -> type[Strict]:
    """What the mapping of a metric can hold."""
    maker: Callable[..., Any] = kind
    made: type[Strict] = create_model(
        kind.__name__,
        __base__=options_of(maker),
        __doc__=summary(kind),
        required=(bool, Field(default=True, description=_REQUIRED)),
    )
    return made


def check_evaluate(asked: Evaluate, lines: Lines) -> None:
    """Refuses an unknown metric and options that are not valid, in one line, with their place.

    Raises:
        InvalidInputError: names the place, the value and what is valid.
    """
    aliases = old_keys()
    for key, said in asked.metrics.items():
        where = lines.of(("evaluate", key))
        name = aliases.get(key, key)
        if name not in METRICS:
            valid = asked.valid_keys()
            near = did_you_mean(key, [*valid, *aliases], cutoff=0.6)
            raise InvalidInputError(
                f"{where}, evaluate.{key}: unknown key; valid keys: {', '.join(valid)}{near}"
            )
        options = metric_options(METRICS[name])
        if isinstance(said, dict):
            validated(options, said, lines, under=("evaluate", key))
        elif said is True:
            needed = [k for k, field in options.model_fields.items() if field.is_required()]
            if needed:
                raise InvalidInputError(
                    f"{where}, evaluate.{key}: needs a mapping with {', '.join(needed)}"
                )
        elif said not in (None, False):
            raise InvalidInputError(
                f"{where}, evaluate.{key}: must be a mapping with the keys "
                f"{', '.join(options.model_fields)}, or null to leave it out, not {shown(said)}"
            )
    try:
        _ = asked.built
    except InvalidInputError as error:
        raise InvalidInputError(f"{lines.of(('evaluate',))}, evaluate: {error}") from None


def evaluate_schema(definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of ``evaluate:``, with the options of every metric."""
    length = Evaluate.model_json_schema()["properties"]["length"]
    properties: dict[str, Any] = {"length": length}
    for kind in in_order():
        found = metric_options(kind).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(found.pop("$defs", {}))
        definitions[f"metric_{kind.name}"] = found
        takes_true = not found.get("required")
        simple = [{"type": "null"}, {"type": "boolean"} if takes_true else {"const": False}]
        for key in (kind.name, *([kind.old_key] if kind.old_key else [])):
            properties[key] = {"anyOf": [{"$ref": f"#/$defs/metric_{kind.name}"}, *simple]}
    return {
        "title": "Evaluate",
        "description": (Evaluate.__doc__ or "").split("\n\n")[0],
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def named_metric(text: str) -> Metric:
    """A metric as the command line names it: ``NAME``, or ``NAME: {OPTION: VALUE}``.

    Raises:
        InvalidInputError: an unknown metric or option, or an invalid value.

    Example:
        >>> named_metric("perplexity: {windows: 3}").windows
        3
    """
    said = f"--metric {text!r}"
    try:
        tree = parse_yaml(text, said)
    except (yaml.YAMLError, ValueError):
        tree = None
    tree = {tree: True} if isinstance(tree, str) else tree
    if not isinstance(tree, dict) or len(tree) != 1:
        raise InvalidInputError(f"{said}: write NAME or 'NAME: {{OPTION: VALUE}}'")
    asked = Evaluate.model_validate({kind.name: None for kind in in_order()} | tree)
    check_evaluate(asked, Lines({}, said))
    if len(asked.built) != 1:
        raise InvalidInputError(f"{said}: write NAME or 'NAME: {{OPTION: VALUE}}'")
    return next(iter(asked.built.values()))
