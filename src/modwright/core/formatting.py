"""How numbers are written for people: one form per kind, with units, the same everywhere."""

from __future__ import annotations

__all__ = ["MISSING", "bytes_text", "count_text", "counted_text", "difference_text", "factor_text"]
__all__ += ["format_bytes", "format_number", "interval_text", "nats_text", "number_text"]
__all__ += ["percent", "percent_text", "scaled_text", "score_text", "seconds_text"]
__all__ += ["share_text", "tick_text"]

MISSING = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P")


def _scaled(value: float) -> tuple[float, str]:
    """A number below 1000 and its decimal prefix; what would be rounded up to it has the next."""
    step = 0
    while abs(value) >= 999.95 and step < len(_PREFIXES) - 1:
        value /= 1000
        step += 1
    return value, _PREFIXES[step]


def format_number(number: float, unit: str = "") -> str:
    """A large number with one decimal and a prefix; every step is a factor of 1000, for bytes too.

    Example:
        >>> format_number(134_515_008), format_number(269_030_016, "B"), format_number(512)
        ('134.5 M', '269 MB', '512')
    """
    value, prefix = _scaled(number)
    return f"{f'{value:.1f}'.removesuffix('.0')} {prefix}{unit}".rstrip()


def format_bytes(count: int) -> str:
    """A byte count in decimal units, always with one decimal: ``'538.1 MB'``."""
    value, prefix = _scaled(count)
    return f"{value:.1f} {prefix}B" if prefix else f"{count} B"


def scaled_text(value: float) -> str:
    """A large count with a decimal prefix, in four digits: ``'12.35 k'``."""
    scaled, prefix = _scaled(value)
    if not prefix:
        return f"{value:,.4g}"
    return f"{scaled:.{1 if abs(scaled) >= 100 else 2}f} {prefix}"


def tick_text(value: float) -> str:
    """A number beside an axis, ``'120 M'``: no more digits than it needs."""
    scaled, prefix = _scaled(value)
    return f"{scaled:.4g} {prefix}".rstrip()


def bytes_text(value: float) -> str:
    """Bytes in decimal units, in four digits, ``'269.0 MB'``: 1 MB is 1,000,000 bytes."""
    text = scaled_text(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def count_text(value: float) -> str:
    """A whole number with separators: ``'134,515,008'``."""
    return f"{round(value):,}"


def counted_text(count: int, noun: str) -> str:
    """How many there are of what: ``'1 step'``, ``'2 steps'``."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """A measured number: two decimals below 100, fewer above, whole from 1,000 on.

    Example:
        >>> number_text(30.917), number_text(233769.6), number_text(1.5e12)
        ('30.92', '233,770', '1.5e+12')
    """
    size = abs(value)
    if size >= 1e9:
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def nats_text(value: float) -> str:
    """A divergence: four digits, however small, ``'1.234e-05'``."""
    return f"{value:.4g}"


def score_text(value: float) -> str:
    """A score as the evaluation harness writes it: four decimals, fewer from 1,000 on."""
    return f"{value:.4f}" if abs(value) < 1000 else number_text(value)


def difference_text(value: float) -> str:
    """What a score went up or down by, signed.

    Example:
        >>> difference_text(-0.16667), difference_text(0.1), difference_text(0.00001)
        ('−0.1667', '+0.1000', '0.0000')
    """
    return _signed(score_text(abs(value)), value < 0)


def percent_text(ratio: float) -> str:
    """The change that a ratio after / before means, signed.

    Example:
        >>> percent_text(0.893), percent_text(1.0), percent_text(1.05)
        ('−10.7 %', '0.0 %', '+5.0 %')
    """
    return _signed(share_text(abs(ratio - 1)), ratio < 1)


def _signed(amount: str, negative: bool) -> str:
    return amount if amount in ("0.0000", "0.0 %") else f"{'−' if negative else '+'}{amount}"


def share_text(share: float) -> str:
    """A share as an unsigned percentage with one decimal: ``'10.7 %'``."""
    return f"{100 * share:,.1f} %"


def factor_text(ratio: float) -> str:
    """A ratio after / before as a factor: ``'× 1.18'``."""
    return f"× {number_text(ratio)}"


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of factors: ``'0.93–1.08'``."""
    return f"{number_text(low)}–{number_text(high)}"


def seconds_text(value: float) -> str:
    """Seconds, or minutes and seconds from two minutes on: ``'3 min 20 s'``."""
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s"


def percent(part: float, whole: float, digits: int = 1) -> str:
    """A share in percent, ``'12.5 %'``; a dash where there is no whole."""
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"
