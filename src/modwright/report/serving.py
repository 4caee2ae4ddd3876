"""Where a model runs, as rows: one per runtime, with the answer, the reason and the command."""

from __future__ import annotations

from modwright.core.formatting import MISSING
from modwright.report.data import Stage

__all__ = ["HEADS", "serving_rows"]

HEADS = ("Runtime", "Takes it", "Why, or how")


def serving_rows(stage: Stage) -> list[tuple[str, str, str]]:
    """Runtime, answer, and the reason with the command that makes its files.

    Example:
        >>> told = {"answer": "after export", "why": "one file", "command": "modwright export A"}
        >>> serving_rows(Stage("before", servable={"llama.cpp": told}))
        [('llama.cpp', 'after export', 'one file: `modwright export A`')]
    """
    return [
        (runtime, told["answer"] or MISSING, _reason(told["why"], told["command"]))
        for runtime, told in stage.servable.items()
    ]


def _reason(why: str, command: str) -> str:
    return f"{why}: `{command}`" if why and command else why or (f"`{command}`" if command else "")
