"""What modwright says when it cannot go on: one line: what is wrong, where, what is right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ModwrightError",
    "ProcessFailed",
    "Refused",
    "UnsupportedArchitecture",
    "VerificationError",
    "WriteFailed",
    "unknown_name",
]


class ModwrightError(Exception):
    """Base of every refusal and failure. The message is one line, ready to be shown to a user.

    ``exit_code`` is what the command line returns: 2 for input that is refused, 1 for work that
    failed.
    """

    exit_code = 2


class UnsupportedArchitecture(ModwrightError):
    """The model's family is not known: says what was recognised and how to add a family."""


class Refused(ModwrightError):
    """A value, a combination or a file is refused before any work is done."""


class CheckpointError(ModwrightError):
    """A source cannot be opened or an output cannot be written."""


class VerificationError(ModwrightError):
    """An edited model broke one of the promises that every edit must keep."""

    exit_code = 1


class WriteFailed(CheckpointError):
    """A file cannot be written while work is under way, mostly because the disk is full."""

    exit_code = 1


class ProcessFailed(ModwrightError):
    """Another process of the same run failed, or is gone.

    Attributes:
        trace: its traceback, for the log.
        lost: it is gone without a word, so nobody else says what happened.
    """

    def __init__(
        self, message: str, exit_code: int = 1, trace: str = "", lost: bool = False
    ) -> None:
        super().__init__(message)
        self.exit_code, self.trace, self.lost = exit_code, trace, lost


def unknown_name(what: str, value: object, allowed: Iterable[str]) -> Refused:
    """A refusal that names the offending value, all legal ones and the nearest.

    Example:
        >>> str(unknown_name("target", "attn", ["attention", "mlp"]))
        "unknown target 'attn'; legal values: attention, mlp (did you mean 'attention'?)"
    """
    names = list(allowed)
    message = f"unknown {what} {value!r}; legal values: {', '.join(names) or 'none'}"
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if near:
        message += f" (did you mean {near[0]!r}?)"
    return Refused(message)
