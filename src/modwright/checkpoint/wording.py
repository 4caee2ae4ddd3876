"""Small pieces of the sentences that refusals are made of."""

from __future__ import annotations

__all__ = ["first_line", "format_bytes"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def format_bytes(count: int) -> str:
    """A byte count for people, in decimal units.

    Example:
        >>> format_bytes(538_060_032)
        '538.1 MB'
    """
    value = float(count)
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def first_line(error: BaseException) -> str:
    """The first line of an exception that says something, for a message of one line.

    Example:
        >>> first_line(ValueError("\\n no such layer \\n at all"))
        'no such layer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
