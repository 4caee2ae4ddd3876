"""What a study says: a recipe, arms that change some of its keys, and seeds; one cell for each."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError, ModwrightError, unknown_name
from modwright.metrics.column import Column
from modwright.metrics.registry import in_order
from modwright.recipes.load import of_file, parse_recipe, recipe_schema, resolved
from modwright.recipes.options import validated
from modwright.recipes.reading import (
    Lines,
    Positions,
    extended,
    override,
    read_changed,
    set_value,
)
from modwright.recipes.schema import NameOrMapping, Recipe, Strict
from modwright.recipes.studies import STUDIES

__all__ = ["Cell", "Study", "load_study", "parse_study", "study_schema"]

# What a study itself gives to each of its cells.
_OF_STUDY = {"seed": "say it in seeds, for all arms", "output": "cells are written below -o"}

Arm = tuple[str, list[tuple[str, Any, str]]]  # a name; key, value, where it was written


class Keep(Strict):
    """Which cell is copied as the result of a study."""

    metric: str = Field(description="a metric, or one of its numbers: perplexity")


class StudyFile(Strict):
    """The keys of a study's file."""

    recipe: NameOrMapping = Field(
        description="a recipe, or the path of one that is relative to the study"
    )
    title: str = ""
    arms: dict[str, Any] = Field(
        default={},
        description="{steps.0.n: [2, 4, 6]} for a sweep; or named arms, each a mapping of dotted "
        "keys of the recipe to values",
    )
    seeds: list[int] | None = Field(default=None, min_length=1, description="null: the recipe's")
    workers: int = Field(default=1, ge=1, description="processes that run cells, of one thread")
    keep: Keep | None = None


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a recipe that is run into a folder of its own."""

    arm: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> str:
        """Where it is written, below the folder of the study.

        Example:
            >>> Cell("n=2", 0, None).folder, Cell("a/b", 1, None).folder
            ('cells/n=2/seed-0', 'cells/a-b-c14cdd/seed-1')
        """
        name = re.sub(r"[^A-Za-z0-9_=-]+", "-", self.arm)[:60]
        same = name == self.arm and name == name.lower()  # some file systems know no upper case
        name = name if same else f"{name}-{sha256_of(self.arm)[:6]}"
        return f"cells/{name}/seed-{self.seed}"

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """Arms times seeds.

    Attributes:
        name: of its file, or the one that it is registered under.
        title: heading of its report.
        cells: the seeds of the first arm, then those of the second, and so on.
        workers: how many processes run them.
        keep: the column by which the best cell is kept; None keeps none.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    workers: int = 1
    keep: Column | None = None

    @property
    def arms(self) -> list[str]:
        """The names of the arms, the baseline first."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe of each cell, as plain values; how many run at once is left out."""
        return {
            "title": self.title,
            "keep": None if self.keep is None else self.keep.name,
            "cells": {cell.folder: resolved(cell.recipe) for cell in self.cells},
        }


def load_study(
    name: str | Path, overrides: Iterable[str] = (), plugins: Sequence[str] = ()
) -> Study:
    """A study by its registered name, or from a YAML file; every cell is checked.

    ``overrides``, such as ``seeds=[0]`` or ``recipe.steps.0.n=6``, change the file.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: names file, line, value and the valid values.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml") or file.exists():
        tree, positions, said = read_changed(file, overrides)
        return parse_study(tree, positions, said, file.parent, plugins)
    said = str(name)
    if said not in STUDIES:
        raise unknown_name("study", said, [*STUDIES.names(), "FILE.yaml"])
    tree, positions = copy.deepcopy(dict(STUDIES[said]())), {}
    for text in overrides:
        override(tree, positions, text)
    return parse_study(tree, positions, said, plugins=plugins)


def parse_study(
    tree: Any,
    positions: Positions | None = None,
    name: str = "study",
    folder: Path = Path(),
    plugins: Sequence[str] = (),
) -> Study:
    """A study from plain values; messages say where each was written, or the study's ``name``.

    Args:
        tree: with the keys of a study's file.
        positions: where each value was written.
        folder: where the paths of a recipe and its plugins begin.
        plugins: more of them than the recipe names.

    Raises:
        InvalidInputError: names the place, the value and what is valid.

    Example:
        >>> steps = [{"method": "llm_drop", "n": 1}]
        >>> recipe = {"model": "preset:tiny-llama", "steps": steps}
        >>> study = parse_study({"recipe": recipe, "arms": {"steps.0.n": [1, 2]}, "seeds": [0, 1]})
        >>> [cell.title for cell in study.cells]
        ['n=1, seed 0', 'n=1, seed 1', 'n=2, seed 0', 'n=2, seed 1']
    """
    lines = Lines(positions or {}, name)
    asked = validated(StudyFile, tree, lines, keys="recipe and arms")
    if isinstance(asked.recipe, str):
        base, below, called = read_changed(folder / asked.recipe, ())
    else:
        below = {at[1:]: said for at, said in lines.positions.items() if at[:1] == ("recipe",)}
        base, called = extended(copy.deepcopy(asked.recipe), below, folder), name
    seeds = asked.seeds
    for index, count in enumerate(seeds or ()):
        if seeds is not None and (count < 0 or count in seeds[:index]):
            problem = "is below 0" if count < 0 else "stands there twice; keep one"
            raise _refused(lines, ("seeds", index), f"{count} {problem}")
    cells: list[Cell] = []
    for arm, changes in _arms(asked, lines):
        changed, places = copy.deepcopy(base), dict(below)
        for key, value, said in changes:
            set_value(changed, places, key, copy.deepcopy(value), said)
        recipe = parse_recipe(changed, places, called, plugins)
        for seed in seeds or [recipe.seed]:
            own = {"seed": seed, "output": "", "threads": recipe.threads or 1}
            cell = Cell(arm, seed, recipe)
            cells.append(Cell(arm, seed, recipe.model_copy(update={**own, "title": cell.title})))
    return Study(
        name, asked.title or Path(name).stem, tuple(cells), asked.workers, _kept(asked, lines)
    )


def _refused(lines: Lines, at: tuple[str | int, ...], problem: object) -> InvalidInputError:
    return InvalidInputError(f"{lines.of(at)}, {'.'.join(map(str, at))}: {problem}")


def _arms(asked: StudyFile, lines: Lines) -> Iterator[Arm]:
    """The arms in their order: named ones, or the product of what is swept over."""
    if not asked.arms:
        if "arms" in asked.model_fields_set:
            problem = "is empty; name arms or keys to sweep over, or leave it out for seeds alone"
            raise _refused(lines, ("arms",), problem)
        yield "recipe", []
        return
    swept = {key: values for key, values in asked.arms.items() if isinstance(values, list)}
    for name, values in asked.arms.items():
        if not isinstance(values, list | Mapping | None):
            problem = "must be a list of values, or a mapping of dotted keys, not"
            raise _refused(lines, ("arms", name), f"{problem} {values!r:.60}")
        if swept and name not in swept:
            problem = "is a named arm beside a sweep; a study has one or the other"
            raise _refused(lines, ("arms", name), problem)
        if values == []:
            raise _refused(lines, ("arms", name), "is empty; list at least one value")
        for key in [name] if swept else values or {}:
            _require_key(key, lines, ("arms", name) if swept else ("arms", name, key))
    if swept:
        yield from _product(swept, lines)
        return
    for name, values in asked.arms.items():
        places = {key: _said(lines, ("arms", name, key)) for key in values or {}}
        yield name, [(key, value, places[key]) for key, value in (values or {}).items()]


def _require_key(key: Any, lines: Lines, at: tuple[str | int, ...]) -> None:
    if not isinstance(key, str) or not all(key.split(".")):
        raise _refused(lines, at, f"{key!r} is no dotted key of a recipe, such as steps.0.n")
    if key in _OF_STUDY:
        raise _refused(lines, at, f"{key} is not changed by an arm; {_OF_STUDY[key]}")


def _product(swept: Mapping[str, list[Any]], lines: Lines) -> Iterator[Arm]:
    last = [key.rpartition(".")[2] for key in swept]
    short = len(set(last)) == len(last) and not any(map(str.isdecimal, last))
    called = dict(zip(swept, last if short else swept))
    seen = Counter[str]()
    for chosen in product(*(range(len(values)) for values in swept.values())):
        picked = dict(zip(swept, chosen))
        name = ", ".join(f"{called[key]}={_flow(swept[key][at])}" for key, at in picked.items())
        seen[name] += 1
        if seen[name] > 1:
            key, at = next((k, i) for k, i in picked.items() if swept[k][i] in swept[k][:i])
            raise _refused(lines, ("arms", key, at), f"two arms are called {name!r}; keep one")
        places = {key: _said(lines, ("arms", key, at)) for key, at in picked.items()}
        yield name, [(key, swept[key][at], places[key]) for key, at in picked.items()]


def _said(lines: Lines, at: tuple[str | int, ...]) -> str:
    return f"{lines.of(at)}, {'.'.join(map(str, at))}"


def _flow(value: Any) -> str:
    """A value on one line, as YAML has it."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _kept(asked: StudyFile, lines: Lines) -> Column | None:
    """The number by which the best cell is chosen."""
    if asked.keep is None:
        return None
    quality = [metric for metric in in_order() if metric.is_quality]
    columns = {column.name: column for metric in quality for column in metric.columns}
    firsts = {metric.name: metric.columns[0] for metric in quality if metric.columns}
    try:
        found = {**columns, **firsts}.get(asked.keep.metric)
        if found is None:
            raise unknown_name("metric", asked.keep.metric, sorted({*columns, *firsts}))
        if found.lower_is_better is None:
            raise InvalidInputError(f"nobody knows which way {asked.keep.metric} is better")
    except ModwrightError as error:
        raise _refused(lines, ("keep", "metric"), error) from None
    return found


def study_schema() -> dict[str, Any]:
    """The schema of a study's file, with that of a recipe in it.

    Example:
        >>> sorted(study_schema()["properties"])
        ['arms', 'extends', 'keep', 'recipe', 'seeds', 'title', 'workers']
    """
    schema, recipe = StudyFile.model_json_schema(), recipe_schema()
    definitions = {**schema["$defs"], **recipe.pop("$defs"), "Recipe": recipe}
    recipe.pop("$schema")
    schema["properties"]["recipe"]["anyOf"] = [{"type": "string"}, {"$ref": "#/$defs/Recipe"}]
    return of_file({**schema, "$defs": definitions})
