"""Threads and random numbers as a recipe asks for them, put back when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

__all__ = ["torch_settings"]


class _Asks(Protocol):
    @property
    def threads(self) -> int | None: ...

    @property
    def seed(self) -> int: ...


@contextmanager
def torch_settings(recipe: _Asks) -> Iterator[None]:
    """Sets torch's threads and seed for one step, or for all the rest that a recipe does.

    Every step begins with the same seed: one that is run alone after a stop draws what it would
    have drawn in an unbroken run.
    """
    threads = torch.get_num_threads()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            yield
    finally:
        torch.set_num_threads(threads)
