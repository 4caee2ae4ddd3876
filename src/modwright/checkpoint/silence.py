"""Keeps transformers' own bars and tables off the terminal: what they say is said by modwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silence_transformers"]


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and load reports inside the block, then restore them."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
