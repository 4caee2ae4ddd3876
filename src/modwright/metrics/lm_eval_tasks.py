"""Tasks of the evaluation harness (lm-eval): found, loaded and tried before any work."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modwright.core.compat.tools import data_fingerprint, is_task_file
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError, first_line, nearest
from modwright.data.text import require_count

__all__ = ["SEEDS", "HarnessRecipe", "HarnessTasks", "harness_version", "load_harness_tasks"]
__all__ += ["quiet_harness", "seeded"]

# The harness's own defaults: of python's random numbers, of numpy's, of torch's and of few-shot
# examples. Tasks draw from the first two while they are loaded and while they are run.
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "evaluate")

_OLDEST = (0, 4, 13)
_EXTRA = "pip install 'modwright[text]'"


@dataclass(frozen=True)
class HarnessRecipe:
    """Which tasks of the harness, and how much of them.

    Attributes:
        tasks: names of tasks, groups or tags, or paths of task files (YAML).
        include_path: a directory whose task files are known too, before the harness's own.
        limit: documents of each task, from its beginning; None takes all.
        num_fewshot: solved examples before each question; None leaves it to the task, and a task
            that fixes 0 keeps it.
        batch_size: requests at once; with padding it changes the last digits.
    """

    tasks: tuple[str, ...]
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1


@dataclass(frozen=True, eq=False)
class HarnessTasks:
    """Loaded tasks and groups as the harness holds them, and the recipe that asked for them."""

    loaded: dict[str, Any]
    recipe: HarnessRecipe

    def digest(self) -> str:
        """Changes with the harness, with a task's settings and with its data."""
        told: list[Any] = [harness_version()]
        for name, task in sorted(self.loaded["tasks"].items()):
            data = getattr(task, "dataset", None) or {}
            prints = {split: data_fingerprint(data[split]) for split in data}
            told.append([name, task.dump_config(), prints])
        return sha256_of(json.dumps(told, default=str))


def harness_version() -> str:
    """The harness with its version, as recipes name it: ``lm-eval 0.4.13``."""
    return f"lm-eval {importlib.metadata.version('lm_eval')}"


def load_harness_tasks(recipe: HarnessRecipe) -> HarnessTasks:
    """The tasks of a recipe, each tried on its first document.

    Task files may name Python functions beside them, which run here: include no file that you would
    not run.

    Raises:
        InvalidInputError: no harness installed, a number outside its range, an unknown task (with
            the nearest names), data that is not on this machine, a task that runs code or reads
            images.
    """
    _require_harness()
    for name in ("limit", "batch_size"):
        if getattr(recipe, name) is not None:
            require_count(name, getattr(recipe, name))
    if recipe.num_fewshot is not None:
        require_count("num_fewshot", recipe.num_fewshot, least=0)
    names = list(dict.fromkeys(recipe.tasks))
    if not names:
        raise InvalidInputError("no harness task is named; give at least one")
    with quiet_harness(), seeded():
        manager = _manager_of(names, recipe.include_path)
        loaded = _load(manager, names)
        for name, task in loaded["tasks"].items():
            _set_fewshot(task, recipe.num_fewshot)
            _try(name, task)
    return HarnessTasks(loaded, recipe)


def _require_harness() -> None:
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        own = (error.name or "lm_eval").partition(".")[0] == "lm_eval"
        missing = "" if own else f" ({error.name} is missing)"
        raise InvalidInputError(f"harness tasks need lm-eval{missing}: {_EXTRA}") from None
    numbers = harness_version().split()[1].split(".")
    if tuple(int(part) for part in numbers[:3] if part.isdecimal()) < _OLDEST:
        least = ".".join(map(str, _OLDEST))
        raise InvalidInputError(
            f"{harness_version()} is too old; {least} or newer is needed: {_EXTRA}"
        )


def _manager_of(names: list[str], include_path: str | None) -> Any:
    """A task manager that knows the names; the harness's own 14,000 are read only if needed."""
    from lm_eval.tasks import TaskManager

    place = None
    if include_path is not None:
        place = str(Path(include_path).expanduser())
        if not Path(place).is_dir():
            raise InvalidInputError(
                f"include_path {include_path!r} is no directory; give one of task files"
            )
    manager = TaskManager(include_path=place, include_defaults=False)
    if not all(_is_complete(name, manager.task_index) for name in names):
        manager = TaskManager(include_path=place) if place else _own_manager()
    for name in names:
        if name not in manager.task_index and not Path(name).expanduser().is_file():
            raise _unknown(name, manager, include_path)
    return manager


def _is_complete(name: str, index: Mapping[str, Any]) -> bool:
    """Whether a task, or a group or tag with all that it names, is known without the harness's."""
    entry = index.get(name)
    if entry is None:
        return is_task_file(name)
    settings = entry.cfg or {}
    members = [*entry.tags] if entry.cfg is None else []
    members += _members(settings.get("task")) if "group" in settings else []
    return all(_is_complete(member, index) for member in members)


def _members(listed: Any) -> Iterator[str]:
    """The names in a group's list, which may hold groups that are written out in place."""
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item["task"])
        else:
            yield str(item.get("task", item.get("group")))


@cache
def _own_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _unknown(name: str, manager: Any, include_path: str | None) -> InvalidInputError:
    import yaml

    count, near = len(manager.all_tasks), nearest(name, manager.all_tasks, n=3, cutoff=0.6)
    where = f"the nearest of {count:,}: {', '.join(near)}"
    if not near:
        where = f"none of {count:,} is near; `lm-eval ls tasks` lists them"
    told = f"unknown harness task {name!r}; {where}"
    files = sorted(Path(include_path).expanduser().glob("**/*.yaml")) if include_path else []
    for file in files:  # the harness passes over one that is no YAML without a word
        try:
            yaml.compose(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, OSError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark is not None else ""
            told += f"; {file.name}{line} is not valid YAML and was left out"
            break
    return InvalidInputError(told)


def _load(manager: Any, names: list[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = manager.load(names)
        return found
    except Exception as error:
        for name in names if len(names) > 1 else ():
            _load(manager, [name])  # the first that cannot be loaded alone is blamed
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        told = f"harness task {', '.join(names)!r} cannot be loaded: {kind}"
        told += first_line(error).rstrip(".")
        if isinstance(error, OSError):
            told += (
                "; what it reads must be on this machine: load it once where there is a network, "
                "or write a task that reads a file of your own and name its folder as include_path"
            )
        raise InvalidInputError(told) from error


def _set_fewshot(task: Any, wanted: int | None) -> None:
    """As the harness's own command does it: a task that fixes 0 examples keeps them."""
    fixed = task.get_config("num_fewshot")
    if wanted is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEEDS["fewshot"])


def _try(name: str, task: Any) -> None:
    """Refuse what would fail later: a template that does not fit the data, code, images."""
    if getattr(task, "UNSAFE_CODE", False):
        raise InvalidInputError(
            f"harness task {name!r} runs code that the model writes, which is not done here; run "
            "it with lm-eval itself in a place of its own"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InvalidInputError(
            f"harness task {name!r} reads images or sound; only text is scored here"
        )
    try:
        task.build_all_requests(limit=1, rank=0, world_size=1)
    except Exception as error:
        raise InvalidInputError(
            f"harness task {name!r} does not fit its data: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


@contextmanager
def seeded(model: nn.Module | None = None) -> Iterator[None]:
    """The harness's seeds inside the block; afterwards the generators go on as if without it."""
    import numpy

    devices = {p.device for p in model.parameters() if p.is_cuda} if model is not None else set()
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(list(devices)):
            random.seed(SEEDS["python"])
            numpy.random.seed(SEEDS["numpy"])
            torch.manual_seed(SEEDS["torch"])
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


class _Counter(logging.Handler):
    """Counts the texts that had to be cut, of all that the harness logs."""

    truncated = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.truncated += "exceeds model's maximum length" in record.getMessage()


@contextmanager
def quiet_harness() -> Iterator[_Counter]:
    """No bars, prints and log lines of the harness, nor processes for its error bars.

    What is yielded counts the texts that did not fit into the model and were cut.
    """
    import tqdm

    from modwright.checkpoint.silence import silence_transformers

    counter = _Counter(logging.WARNING)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(log.level, log.propagate) for log in loggers]
    bar, pool = tqdm.tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")

    def hidden(self: Any, *args: Any, **given: Any) -> None:
        bar(self, *args, **{**given, "disable": True})

    with silence_transformers(), contextlib.redirect_stdout(io.StringIO()):
        try:
            tqdm.tqdm.__init__ = hidden
            os.environ["DISABLE_MULTIPROC"] = "1"
            for log in loggers:
                log.setLevel(logging.WARNING)
                log.propagate = False
            loggers[0].addHandler(counter)
            yield counter
        finally:
            loggers[0].removeHandler(counter)
            tqdm.tqdm.__init__ = bar
            os.environ.pop("DISABLE_MULTIPROC", None)
            if pool is not None:
                os.environ["DISABLE_MULTIPROC"] = pool
            for log, (level, propagates) in zip(loggers, before):
                log.setLevel(level)
                log.propagate = propagates
