"""How many times as fast one thing is as another, from pairs of neighboring runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CONFIDENCE", "FEWEST_PAIRS", "PairedRatio"]

CONFIDENCE = 0.95
# With fewer pairs not even the smallest and the largest ratio enclose the median so surely.
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class PairedRatio:
    """The median of the ratios of pairs, and an interval of order statistics around it.

    Neighbors share the state of the machine, so its drift cancels in their ratio. The interval
    encloses the median of all such ratios in at least 95 of 100 measurements, whatever their
    distribution; with fewer than six pairs nothing can be concluded from it.

    Example:
        >>> PairedRatio.of([1.02, 0.97, 1.01, 0.99, 1.05, 0.96, 1.0])
        PairedRatio(median=1.0, low=0.96, high=1.05, pairs=7)
        >>> print(PairedRatio.of([1.2] * 8))
        1.20 (1.20-1.20)
    """

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> PairedRatio:
        ordered = sorted(ratios)
        cut = _cut(len(ordered))
        return cls(statistics.median(ordered), ordered[cut], ordered[-1 - cut], len(ordered))

    @property
    def is_settled(self) -> bool:
        """Whether there are enough pairs to conclude anything."""
        return self.pairs >= FEWEST_PAIRS

    @property
    def differs(self) -> bool:
        """Whether a difference was seen: the interval does not hold 1."""
        return self.is_settled and not self.low <= 1 <= self.high

    def is_narrow(self, width: float) -> bool:
        """Whether the interval's ends differ by at most this share."""
        return self.is_settled and self.high <= self.low * (1 + width)

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"

    def __str__(self) -> str:
        return f"{self:.2f}"


def _cut(count: int) -> int:
    """How many ratios lie outside the interval on each side.

    Each ratio is below the median with probability one half, so how many are is binomial.
    """
    tail, cut = 0.0, 0
    for outside in range(count // 2):
        tail += math.comb(count, outside) / 2**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        cut = outside
    return cut
