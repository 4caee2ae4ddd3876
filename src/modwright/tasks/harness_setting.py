"""What the evaluation harness is run in: its seeds, its noise, and everything put back after."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["SEEDS", "quiet_harness", "seeded"]

# The harness's own defaults: of python's random numbers, of numpy's, of torch's and of few-shot
# examples. Tasks draw from the first two while they are loaded and while they are run.
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
_TRUNCATED = "exceeds model's maximum length"
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "evaluate")


@contextmanager
def seeded(model: nn.Module | None = None) -> Iterator[None]:
    """The harness's seeds inside the block; the generators go on afterwards as if it had not been.

    A task that shuffles its answers then gives the same questions before and after an edit.
    """
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

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.truncated = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.truncated += _TRUNCATED in record.getMessage()


@contextmanager
def quiet_harness() -> Iterator[_Counter]:
    """No bars, prints and log lines of the harness and its libraries inside the block.

    What is yielded counts the texts that did not fit into the model and were cut. The harness's
    error bars are drawn in this process, not in a pool of new ones.
    """
    import tqdm

    from modwright.checkpoint.silence import silence_transformers

    counter = _Counter()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(log.level, log.propagate) for log in loggers]
    bar, pool = tqdm.tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")

    def hidden(self: Any, *args: Any, **given: Any) -> None:
        bar(self, *args, **{**given, "disable": True})

    with contextlib.ExitStack() as stack:
        stack.enter_context(silence_transformers())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.callback(_restore, loggers, before, bar, pool)
        tqdm.tqdm.__init__ = hidden
        os.environ["DISABLE_MULTIPROC"] = "1"
        for log in loggers:
            log.setLevel(logging.WARNING)
            log.propagate = False
        loggers[0].addHandler(counter)
        stack.callback(loggers[0].removeHandler, counter)
        yield counter


def _restore(
    loggers: list[logging.Logger], before: list[tuple[int, bool]], bar: Any, pool: str | None
) -> None:
    import tqdm

    tqdm.tqdm.__init__ = bar
    if pool is None:
        os.environ.pop("DISABLE_MULTIPROC", None)
    else:
        os.environ["DISABLE_MULTIPROC"] = pool
    for log, (level, propagates) in zip(loggers, before):
        log.setLevel(level)
        log.propagate = propagates
