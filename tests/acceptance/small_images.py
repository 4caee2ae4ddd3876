"""Trains a structure with several seeds and writes down how well it does on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

import torch
from figures import note

from modwright.data import Data
from modwright.training import Settings, fit

__all__ = ["mean_accuracy"]


def mean_accuracy(
    figure: str,
    make: Callable[[], Any],
    data: Data,
    seeds: Sequence[int],
    **settings: Any,
) -> float:
    """Mean test accuracy in percent, of one training from scratch per seed.

    ``make`` builds the model after the seed is set; ``settings`` are those of ``Settings``.
    """
    found, seconds = [], 0.0
    for seed in seeds:
        torch.manual_seed(seed)
        fitted = fit(make(), data, None, Settings(seed=seed, **settings))
        assert fitted.accuracy is not None
        found.append(100 * fitted.accuracy)
        seconds += fitted.seconds
    spread = stdev(found) if len(found) > 1 else 0.0
    note(
        figure,
        mean=mean(found),
        spread=spread,
        each=found,
        parameters=fitted.parameters,
        seconds_of_a_training=seconds / len(seeds),
    )
    return mean(found)
