"""What modwright says when it cannot go on: one line: what is wrong, where, what is right."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = ["CheckpointError", "InvalidInputError", "ModwrightError", "ProcessFailed"]
__all__ += ["UnsupportedArchitecture", "VerificationError", "WriteFailed", "did_you_mean"]
__all__ += ["first_line", "nearest", "reason", "refusing", "unknown_name"]


class ModwrightError(Exception):
    """Base of every refusal and failure. The message is one line, ready to be shown to a user.

    ``exit_code`` is what the command line returns: 2 for input that is refused, 1 for work that
    failed.
    """

    exit_code = 2


class UnsupportedArchitecture(ModwrightError):
    """The model's family is not known: says what was recognized and how to add a family."""


class InvalidInputError(ModwrightError):
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
        reported: the main process reports it, so this one need not.
    """

    def __init__(self, message: str, exit_code: int = 1, trace: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.trace, self.reported = exit_code, trace, False


def nearest(value: object, names: Iterable[str], n: int = 1, cutoff: float = 0.5) -> list[str]:
    """The names that are written most like a value, the nearest first; none where none is near."""
    return difflib.get_close_matches(str(value), list(names), n=n, cutoff=cutoff)


def did_you_mean(value: object, names: Iterable[str], cutoff: float = 0.5) -> str:
    """What a message ends with where a name is near to a value; empty where none is.

    Example:
        >>> did_you_mean("attn", ["attention", "mlp"])
        " (did you mean 'attention'?)"
    """
    return "".join(f" (did you mean {near!r}?)" for near in nearest(value, names, 1, cutoff))


def unknown_name(what: str, value: object, allowed: Iterable[str]) -> InvalidInputError:
    """A refusal that names the offending value, all valid ones and the nearest.

    Example:
        >>> str(unknown_name("target", "attn", ["attention", "mlp"]))
        "unknown target 'attn'; valid values: attention, mlp (did you mean 'attention'?)"
    """
    names = list(allowed)
    valid = ", ".join(names) or "none"
    return InvalidInputError(
        f"unknown {what} {value!r}; valid values: {valid}{did_you_mean(value, names)}"
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception that says something, for a message of one line.

    Example:
        >>> first_line(ValueError("\\n no such layer \\n at all"))
        'no such layer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def reason(error: BaseException) -> str:
    """Why a file cannot be read or written: what the system says, or the first line."""
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def refusing(
    where: str | Callable[[], str] = "", kinds: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """Turns what plain parts raise into a refusal in one line.

    ``nn`` raises what torch does, ``ValueError``; whoever builds parts from what a user said does
    so inside this block. The line begins with ``where``.

    Example:
        >>> with refusing("norm 'foo'"):
        ...     raise ValueError("there is no such norm")
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: norm 'foo': there is no such norm
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, ModwrightError):
            raise
        told = " ".join(str(error).split()) or type(error).__name__
        begin = where() if callable(where) else where
        raise InvalidInputError(f"{begin}: {told}" if begin else told) from error
