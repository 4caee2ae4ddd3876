"""Numbers for people."""

from __future__ import annotations

__all__ = ["human", "percent"]

_PREFIXES = ("", "k", "M", "G", "T", "P")


def human(number: float, unit: str = "") -> str:
    """A large number with one decimal and a prefix; every step is a factor of 1000, for bytes too.

    Example:
        >>> human(134_515_008), human(269_030_016, "B"), human(512)
        ('134.5 M', '269 MB', '512')
    """
    step = 0
    while abs(number) >= 999.95 and step < len(_PREFIXES) - 1:
        number /= 1000
        step += 1
    return f"{f'{number:.1f}'.removesuffix('.0')} {_PREFIXES[step]}{unit}".rstrip()


def percent(part: float, whole: float, digits: int = 1) -> str:
    """A share in percent; a dash where there is no whole.

    Example:
        >>> percent(1, 8), percent(0, 0)
        ('12.5 %', '-')
    """
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"
