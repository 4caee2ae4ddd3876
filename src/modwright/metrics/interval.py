"""How sure a mean over windows of a text, or over images, is: bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["CONFIDENCE", "FEWEST", "Interval", "mean_interval", "paired_change"]

CONFIDENCE = 0.95
FEWEST = 5
"""With fewer windows no interval is given: what so few say of the spread is hardly anything."""

_SEED = 0
# Few windows have their percentiles far out, where many draws are needed.
_MANY, _RESAMPLES, _FEWER = 1_000, 10_000, 2_000
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval, and how many windows it was made of.

    Example:
        >>> Interval(-0.1, 0.2, 6).covers(0.0)
        True
    """

    low: float
    high: float
    windows: int

    def covers(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, float | int]:
        """Plain values."""
        return {"low": self.low, "high": self.high, "windows": self.windows}


def mean_interval(sums: Sequence[float], counts: Sequence[float]) -> Interval | None:
    """Where a mean lies, from sum and number of each window; None where they say too little.

    Windows are drawn again with replacement, 10,000 times from one seed (2,000 times where there
    are more than 1,000), and the mean is taken of each draw. The percentiles lie further out for
    few windows, by Student's t: the expanded interval of arXiv:1411.5279.

    Example:
        >>> found = mean_interval([3.0, 5.0, 4.0, 6.0, 2.0, 4.0], [2.0] * 6)
        >>> found.windows, found.low < 2.0 < found.high
        (6, True)
    """
    return _interval(tuple(map(float, sums)), tuple(map(float, counts)))


def paired_change(
    before: Sequence[float], after: Sequence[float], counts: Sequence[float]
) -> Interval | None:
    """Where the difference of two means over the same windows lies: after - before.

    Both are drawn by the same windows, so that what makes a window hard for both cancels.

    Example:
        >>> one, counts = [3.0, 5.0, 4.0, 6.0, 2.0, 4.0], [2.0] * 6
        >>> found = paired_change(one, [value + 0.2 for value in one], counts)
        >>> round(found.low, 6), round(found.high, 6)
        (0.1, 0.1)
    """
    if not len(before) == len(after) == len(counts):
        return None
    return _interval(
        tuple(float(b) - float(a) for a, b in zip(before, after)), tuple(map(float, counts))
    )


@lru_cache(maxsize=256)
def _interval(sums: tuple[float, ...], counts: tuple[float, ...]) -> Interval | None:
    size = len(sums)
    if size < FEWEST or not all(map(math.isfinite, sums)) or min(counts) <= 0:
        return None
    whole, weights = np.array(sums), np.array(counts)
    draws = np.random.default_rng(_SEED)
    means, rows = [], max(1, _AT_ONCE // size)
    resamples = _RESAMPLES if size <= _MANY else _FEWER
    for start in range(0, resamples, rows):
        drawn = draws.integers(size, size=(min(rows, resamples - start), size))
        means.append(whole[drawn].sum(1) / weights[drawn].sum(1))
    tail = _tail(size)
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(low), float(high), size)


def _tail(size: int) -> float:
    """The share that is cut off at each end."""
    from scipy.stats import norm, t

    wide = math.sqrt(size / (size - 1)) * t.ppf((1 + CONFIDENCE) / 2, size - 1)
    return float(norm.cdf(-wide))
