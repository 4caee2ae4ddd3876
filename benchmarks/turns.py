"""Measuring in turns: what is compared runs side by side in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch

from modwright.core.paired import PairedRatio

__all__ = ["CLOCKS", "Clock", "forward_seconds", "forward_side_by_side", "in_turns"]

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_T = TypeVar("_T")


def in_turns(one: Callable[[], _T], other: Callable[[], _T], repeats: int) -> list[tuple[_T, _T]]:
    """What both measure, a pair for each turn; each is first every second time."""
    pairs = []
    for turn in range(repeats):
        if turn % 2:
            first = one()
            pairs.append((first, other()))
        else:
            second = other()
            pairs.append((one(), second))
    return pairs


@torch.no_grad()
def forward_seconds(model: Any, images: torch.Tensor, clock: Clock) -> float:
    """One forward pass."""
    began = clock()
    model(images)
    return clock() - began


def forward_side_by_side(
    ours: Any, theirs: Any, images: torch.Tensor, repeats: int, clock: Clock
) -> tuple[float, float, PairedRatio]:
    """Milliseconds of a forward pass of both, and how many times as fast ours is."""
    one, other = (partial(forward_seconds, model, images, clock) for model in (ours, theirs))
    one(), other()
    pairs = in_turns(one, other, repeats)
    mine, peers = (1e3 * median(side) for side in zip(*pairs))
    return mine, peers, PairedRatio.of([long / short for short, long in pairs])
