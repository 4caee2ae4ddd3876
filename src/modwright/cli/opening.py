"""Opens a model for a command and says what was opened otherwise than it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modwright.cli.console import log

if TYPE_CHECKING:
    from modwright.checkpoint import Checkpoint

__all__ = ["open_checkpoint"]


def open_checkpoint(source: Any, **options: Any) -> Checkpoint:
    """As `modwright.checkpoint.open`; its notes go to stderr."""
    from modwright.checkpoint import open as open_quietly

    opened = open_quietly(source, **options)
    for note in opened.notes:
        log(f"note: {note}")
    return opened
