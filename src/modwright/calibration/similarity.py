"""How little each part changes the residual stream: scores of methods and analyses."""

from __future__ import annotations

import math

from modwright.anatomy.selectors import KINDS
from modwright.calibration.statistics import Statistics

__all__ = ["part_similarities"]


def part_similarities(statistics: Statistics) -> dict[str, list[float]]:
    """Similarities by kind of part, one of each block; NaN where a block has no such part.

    Args:
        statistics: of :class:`~modwright.calibration.Similarity`.
    """
    columns = {kind: f"similarity/{kind}" for kind in KINDS}
    there = {name for values in statistics for name in columns.values() if name in values}
    nothing = [math.nan] * len(statistics)
    return {k: statistics.column(c) if c in there else nothing[:] for k, c in columns.items()}
