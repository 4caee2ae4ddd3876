"""Reads a recipe file. What is wrong is said with its line, its value and what would be legal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from modwright.errors import CheckpointError, ModwrightError, Refused
from modwright.recipes.schema import Recipe
from modwright.surgery import make_method

__all__ = ["load_recipe", "parse_recipe", "resolved"]

Location = tuple[str | int, ...]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file, fully checked: methods and their options too.

    Args:
        path: the file. A key ``extends`` names another one, relative to it, that this one changes.
        overrides: ``steps.0.n=6`` and the like, applied last.

    Raises:
        CheckpointError: the file cannot be read.
        Refused: names file, line, value and the legal values.
    """
    file = Path(path)
    tree, lines = _read(file)
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, lines, file.name)


def parse_recipe(
    tree: Any, lines: Mapping[Location, int] | None = None, name: str = "recipe"
) -> Recipe:
    """A recipe from plain values."""
    where = lines or {}
    if not isinstance(tree, dict):
        raise Refused(f"{name}: a recipe is a mapping with the keys model, steps and output")
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise Refused(f"{name}{_explain(error, where)}") from None
    for index, step in enumerate(recipe.steps):
        try:
            make_method(step.method, step.options)
        except ModwrightError as error:
            at = next(
                (
                    where[("steps", index, key)]
                    for key in (*_mentioned(str(error), step.options), "method")
                    if ("steps", index, key) in where
                ),
                None,
            )
            line = f" line {at}" if at is not None else ""
            raise Refused(f"{name}{line}, steps.{index}: {error}") from None
    return recipe


def _mentioned(message: str, options: Mapping[str, Any]) -> list[str]:
    return [key for key in options if key in message]


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out; running it again gives the same result."""
    tree = recipe.model_dump(mode="json")
    for step, stored in zip(recipe.steps, tree["steps"]):
        method = make_method(step.method, step.options)
        options = {name: _plain(value) for name, value in vars(method).items()}
        stored.clear()
        stored.update({"method": step.method, **options})
        stored["calibration"] = (step.calibration or recipe.calibration).model_dump(mode="json")
    return tree


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read(file: Path) -> tuple[Any, dict[Location, int]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the recipe {str(file)!r}: {error}") from None
    try:
        tree = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise Refused(f"{file.name}{line}: not valid YAML: {problem}") from None
    lines: dict[Location, int] = {}
    if node is not None:
        _note_lines(node, (), lines)
    if isinstance(tree, dict) and "extends" in tree:
        parent = file.parent / str(tree.pop("extends"))
        base, _ = _read(parent)
        tree = _merged(base, tree)
    return tree, lines


def _note_lines(node: yaml.Node, at: Location, lines: dict[Location, int]) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            lines[here] = key.start_mark.line + 1
            _note_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*at, index), lines)


def _merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return {
            key: _merged(base[key], change[key])
            if key in base and key in change
            else change.get(key, base.get(key))
            for key in (*base, *(k for k in change if k not in base))
        }
    return change


def _override(tree: Any, text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"--set {text!r}: write KEY=VALUE, for example steps.0.n=6")
    *parents, last = path.split(".")
    here = tree
    for piece in parents:
        try:
            here = here[int(piece)] if isinstance(here, list) else here.setdefault(piece, {})
        except (IndexError, ValueError, AttributeError):
            raise Refused(f"--set {text!r}: the recipe has no {piece!r} there") from None
    parsed = yaml.safe_load(value)
    if isinstance(here, list):
        try:
            here[int(last)] = parsed
        except (IndexError, ValueError):
            raise Refused(f"--set {text!r}: the list has entries 0 to {len(here) - 1}") from None
    else:
        here[last] = parsed


def _explain(error: ValidationError, lines: Mapping[Location, int]) -> str:
    first = error.errors()[0]
    at: Location = tuple(piece for piece in first["loc"] if piece != "options")
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), None)
    path = ".".join(str(piece) for piece in at)
    message = first["msg"][0].lower() + first["msg"][1:]
    given = "" if first["type"] in ("missing", "extra_forbidden") else f", not {first['input']!r}"
    legal = ""
    if first["type"] == "extra_forbidden":
        names = _fields_at(at[:-1])
        near = difflib.get_close_matches(str(at[-1]), names, n=1)
        message = "unknown key"
        legal = f"; legal keys: {', '.join(names)}" if names else ""
        legal += f" (did you mean {near[0]!r}?)" if near else ""
    shown = f" line {line}" if line is not None else ""
    return f"{shown}, {path}: {message}{given}{legal}"


def _fields_at(at: Location) -> list[str]:
    """The legal keys of the mapping at a place in the recipe."""
    model: Any = Recipe
    for piece in at:
        if isinstance(piece, int):
            continue
        field = model.model_fields.get(piece)
        if field is None:
            return []
        found = _models_in(field.annotation)
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]
