"""Where the labels of a curve stand: beside their points, clear of the line and of each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from matplotlib.transforms import Bbox

__all__ = ["LabelPosition", "place"]

# Of system fonts at 12 units: a little more than the average advance, and the line height.
_CHARACTER = 6.5
_HEIGHT = 14.0
_POINT = 5.0
_SAMPLES = 24


class LabelPosition(NamedTuple):
    """An offset from the point to the near corner of the text; y upwards."""

    dx: float
    dy: float

    @property
    def ha(self) -> str:
        """Which side of the text stands there."""
        return "left" if self.dx > 0 else "right"

    @property
    def va(self) -> str:
        """Which end of the text stands there."""
        return "bottom" if self.dy > 0 else "top"

    @property
    def is_far(self) -> bool:
        """Whether a line must lead from the text to its point."""
        return abs(self.dy) > _HEIGHT

    def box(self, x: float, y: float, text: str) -> Bbox:
        """The room that a text takes here, beside a point."""
        width = _CHARACTER * len(text)
        left, bottom = x + self.dx - width * (self.dx < 0), y + self.dy - _HEIGHT * (self.dy < 0)
        return Bbox.from_bounds(left, bottom, width, _HEIGHT)


# Beside the point first, then further and further away.
_SPOTS = [
    LabelPosition(side * dx, way * dy)
    for dx, dy in ((6, 5), (8, 22), (8, 38), (8, 54), (8, 70), (8, 86))
    for side, way in ((1, 1), (-1, -1), (-1, 1), (1, -1))
]


def place(
    points: Sequence[tuple[float, float]], texts: Sequence[str], frame: Bbox
) -> list[LabelPosition]:
    """A spot for each text, in order: the first free one, else the one with the least overlap.

    Args:
        points: of the curve, joined in this order.
        texts: one per point.
        frame: what labels must stay inside.

    Example:
        >>> place([(10.0, 10.0)], ["before"], Bbox.from_extents(0, 0, 100, 100))
        [LabelPosition(dx=6, dy=5)]
    """
    dots = [Bbox.from_extents(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    line = [
        (x0 + (x1 - x0) * i / _SAMPLES, y0 + (y1 - y0) * i / _SAMPLES)
        for (x0, y0), (x1, y1) in pairwise(points)
        for i in range(_SAMPLES + 1)
    ]
    taken: list[Bbox] = []

    def cost(box: Bbox) -> float:
        outside = max(0.0, frame.x0 - box.x0) + max(0.0, box.x1 - frame.x1)
        outside += max(0.0, frame.y0 - box.y0) + max(0.0, box.y1 - frame.y1)
        overlaps = 50 * sum(map(box.overlaps, taken)) + 20 * sum(map(box.overlaps, dots))
        return 100 * outside + overlaps + 4 * sum(box.contains(x, y) for x, y in line)

    chosen = []
    for (x, y), text in zip(points, texts):
        spot = min(_SPOTS, key=lambda spot: cost(spot.box(x, y, text)))
        taken.append(spot.box(x, y, text))
        chosen.append(spot)
    return chosen
