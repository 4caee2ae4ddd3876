"""What modwright says when it cannot go on: one line: what is wrong, where, what is right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ModwrightError",
    "Refused",
    "UnsupportedArchitecture",
    "VerificationError",
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
