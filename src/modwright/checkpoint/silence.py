"""Keeps transformers' own bars and tables off the terminal: what they say is said by modwright."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from transformers.utils import logging as theirs

__all__ = ["quiet", "silence_transformers"]


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and load reports inside the block, then restore them."""
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """Tracers print, warn and log at length; what matters of it is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), silence_transformers(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
