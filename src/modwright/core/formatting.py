"""How numbers are written for people: one form per kind, with units, the same everywhere."""

from __future__ import annotations

__all__ = [
    "MISSING",
    "bytes_text",
    "count_text",
    "difference_text",
    "factor_text",
    "format_bytes",
    "format_number",
    "interval_text",
    "nats_text",
    "number_text",
    "percent",
    "percent_text",
    "scaled_text",
    "score_text",
    "seconds_text",
    "share_text",
    "tick_text",
]

MISSING = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P")


def _scaled(value: float) -> tuple[float, str]:
    """A number below 1000 and the decimal prefix that goes with it.

    What would be rounded up to 1000.0 is one of the next prefix.
    """
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
    """A byte count in decimal units, always with one decimal.

    Example:
        >>> format_bytes(538_060_032), format_bytes(512), format_bytes(999_960)
        ('538.1 MB', '512 B', '1.0 MB')
    """
    value, prefix = _scaled(count)
    return f"{value:.1f} {prefix}B" if prefix else f"{count} B"


def scaled_text(value: float) -> str:
    """A large count with a decimal prefix, in four digits.

    Example:
        >>> scaled_text(134515008), scaled_text(12_345), scaled_text(999)
        ('134.5 M', '12.35 k', '999')
    """
    scaled, prefix = _scaled(value)
    if not prefix:
        return f"{value:,.4g}"
    return f"{scaled:.{1 if abs(scaled) >= 100 else 2}f} {prefix}"


def tick_text(value: float) -> str:
    """A number beside an axis: no more digits than it needs.

    Example:
        >>> tick_text(120_000_000), tick_text(100_000), tick_text(32.5)
        ('120 M', '100 k', '32.5')
    """
    scaled, prefix = _scaled(value)
    return f"{scaled:.4g} {prefix}".rstrip()


def bytes_text(value: float) -> str:
    """Bytes in decimal units, in four digits: 1 MB is 1,000,000 bytes.

    Example:
        >>> bytes_text(269_030_016), bytes_text(512)
        ('269.0 MB', '512 B')
    """
    text = scaled_text(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def count_text(value: float) -> str:
    """A whole number with separators.

    Example:
        >>> count_text(134515008)
        '134,515,008'
    """
    return f"{round(value):,}"


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
    """A divergence: four digits, however small.

    Example:
        >>> nats_text(0.31214), nats_text(0.0), nats_text(0.000012345)
        ('0.3121', '0', '1.234e-05')
    """
    return f"{value:.4g}"


def score_text(value: float) -> str:
    """A score as the evaluation harness writes it: four decimals, fewer from 1,000 on.

    Example:
        >>> score_text(0.83333), score_text(27.1), score_text(12345.6)
        ('0.8333', '27.1000', '12,346')
    """
    return f"{value:.4f}" if abs(value) < 1000 else number_text(value)


def difference_text(value: float) -> str:
    """What a score went up or down by, signed.

    Example:
        >>> difference_text(-0.16667), difference_text(0.1), difference_text(0.00001)
        ('−0.1667', '+0.1000', '0.0000')
    """
    amount = score_text(abs(value))
    if amount == "0.0000":
        return amount
    return f"{'−' if value < 0 else '+'}{amount}"


def percent_text(ratio: float) -> str:
    """The change that a ratio after / before means, signed.

    Example:
        >>> percent_text(0.893), percent_text(1.0), percent_text(1.05)
        ('−10.7 %', '0.0 %', '+5.0 %')
    """
    amount = share_text(abs(ratio - 1))
    if amount == "0.0 %":
        return amount
    return f"{'−' if ratio < 1 else '+'}{amount}"


def share_text(share: float) -> str:
    """A share as an unsigned percentage with one decimal.

    Example:
        >>> share_text(0.1071)
        '10.7 %'
    """
    return f"{100 * share:,.1f} %"


def factor_text(ratio: float) -> str:
    """A ratio after / before as a factor.

    Example:
        >>> factor_text(1.1824)
        '× 1.18'
    """
    return f"× {number_text(ratio)}"


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of factors.

    Example:
        >>> interval_text(0.934, 1.081)
        '0.93–1.08'
    """
    return f"{number_text(low)}–{number_text(high)}"


def seconds_text(value: float) -> str:
    """Seconds, or minutes and seconds from two minutes on.

    Example:
        >>> seconds_text(8.24), seconds_text(200)
        ('8.2 s', '3 min 20 s')
    """
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s"


def percent(part: float, whole: float, digits: int = 1) -> str:
    """A share in percent; a dash where there is no whole.

    Example:
        >>> percent(1, 8), percent(0, 0)
        ('12.5 %', '-')
    """
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"
