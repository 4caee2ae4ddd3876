"""The null of what depends on an architecture: the same number in untrained models of it."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from modwright.analysis.finding import Finding
from modwright.anatomy import Anatomy
from modwright.checkpoint import require_memory, weights_bytes
from modwright.checkpoint.silence import silence_transformers
from modwright.core.digest import sha256_of
from modwright.core.files import read_json, write_file
from modwright.core.modes import set_eval
from modwright.core.progress import Progress

__all__ = ["NULL", "Untrained", "UntrainedFinding", "null_of", "untrained"]

DEVIATIONS = 4.0
"""How far above the mean of the untrained models a number must lie, in standard deviations."""

NULL = (
    f"its mean in untrained models of the same architecture and {DEVIATIONS:g} standard "
    "deviations, of the log odds"
)

Values = dict[str, list[float | None]]


@dataclass(frozen=True)
class Untrained:
    """Options of analyses whose null is that of untrained models.

    Attributes:
        untrained: how many untrained models are measured, of seeds 1, 2 and so on.
    """

    untrained: Annotated[int, Field(ge=2)] = 9


@dataclass(frozen=True, kw_only=True)
class UntrainedFinding(Finding):
    """Base of findings whose null is that of untrained models.

    Attributes:
        untrained: the number in each of them.
    """

    untrained: tuple[float, ...]


def null_of(values: tuple[float, ...]) -> float:
    """What shares of 1 in untrained models reach at most: mean and deviations of their log odds.

    Example:
        >>> round(null_of((0.5, 0.5, 0.5)), 3), 0.8 < null_of((0.5, 0.6, 0.7)) < 1
        (0.5, True)
    """
    odds = [math.log(v / (1 - v)) for v in (min(max(value, 1e-12), 1 - 1e-12) for value in values)]
    return 1 / (1 + math.exp(-statistics.mean(odds) - DEVIATIONS * statistics.stdev(odds)))


@contextmanager
def untrained(model: Any, seed: int) -> Iterator[Anatomy]:
    """A model of the same class and config with the start values of a seed."""
    require_memory(weights_bytes(model), "an untrained model beside this one")
    parameter = next(model.parameters())
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), silence_transformers():
        torch.manual_seed(seed)
        made = type(model)(copy.deepcopy(model.config))
    yield Anatomy.of(set_eval(made.to(parameter.device, parameter.dtype)))


def measured(
    anatomy: Anatomy,
    measure: Callable[[Anatomy, Path | None], Values],
    count: int,
    directory: Path | None,
    progress: Progress,
) -> tuple[Values, list[Values]]:
    """What is measured of a model, and of ``count`` untrained ones of its class and config.

    Those that ``directory`` keeps from before are not measured again.
    """
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    of_model = measure(anatomy, None if directory is None else directory / "model")
    others = []
    said = sha256_of(json.dumps(anatomy.config.to_dict(), sort_keys=True, default=str))
    with progress.phase("untrained models", count) as task:
        for seed in range(1, count + 1):
            file = None if directory is None else directory / f"untrained-{seed}.json"
            kept = None if file is None else read_json(file)
            if not isinstance(kept, Mapping) or kept.get("config") != said:
                with untrained(anatomy.model, seed) as fresh:
                    kept = {"config": said, "values": measure(fresh, None)}
                if file is not None:
                    write_file(file, json.dumps(kept))
            others.append(kept["values"])
            task.advance()
    return of_model, others


def largest(values: Values, of: tuple[str, ...] | None = None) -> float:
    """The largest number there is, of all kinds or some."""
    kinds = values if of is None else of
    return max(v for kind in kinds for v in values[kind] if v is not None)
