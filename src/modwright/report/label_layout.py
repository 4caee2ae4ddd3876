"""Where the labels of a curve stand: beside their points, clear of the line and of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Box", "LabelPosition", "place"]

# Of system fonts at 12 units: a little more than the average advance, and the line height.
_CHARACTER = 6.5
_HEIGHT = 14.0
_POINT = 5.0
_SAMPLES = 24


@dataclass(frozen=True)
class Box:
    """A rectangle in units of the figure, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies inside."""
        return self.left <= x <= self.right and self.bottom <= y <= self.top

    def meets(self, other: Box) -> bool:
        """Whether two rectangles overlap."""
        apart = self.left > other.right or other.left > self.right
        return not (apart or self.bottom > other.top or other.bottom > self.top)


@dataclass(frozen=True)
class LabelPosition:
    """An offset from the point, and which side of the text stands there."""

    dx: float
    dy: float
    ha: str
    va: str

    @property
    def is_far(self) -> bool:
        """Whether a line must lead from the text to its point."""
        return abs(self.dy) > _HEIGHT

    def box(self, x: float, y: float, text: str) -> Box:
        """The room that a text takes here, beside a point."""
        width = _CHARACTER * len(text)
        left = x + self.dx - {"left": 0.0, "center": width / 2, "right": width}[self.ha]
        bottom = y + self.dy - (0.0 if self.va == "bottom" else _HEIGHT)
        return Box(left, bottom, left + width, bottom + _HEIGHT)


# Beside the point first, then above and below, then further and further away.
_SPOTS = (
    LabelPosition(6, 5, "left", "bottom"),
    LabelPosition(-6, -5, "right", "top"),
    LabelPosition(-6, 5, "right", "bottom"),
    LabelPosition(6, -5, "left", "top"),
    LabelPosition(0, 9, "center", "bottom"),
    LabelPosition(0, -9, "center", "top"),
    *(
        LabelPosition(
            side * 8, way * far, "left" if side > 0 else "right", "bottom" if way > 0 else "top"
        )
        for far in (22, 38, 54, 70, 86)
        for side in (1, -1)
        for way in (1, -1)
    ),
)


def place(
    points: Sequence[tuple[float, float]], texts: Sequence[str], frame: Box
) -> list[LabelPosition]:
    """A spot for each text, in order: the first free one, else the one with the least overlap.

    Args:
        points: of the curve, joined in this order.
        texts: one per point.
        frame: what labels must stay inside.

    Example:
        >>> place([(10.0, 10.0)], ["before"], Box(0, 0, 100, 100))
        [LabelPosition(dx=6, dy=5, ha='left', va='bottom')]
    """
    taken: list[Box] = []
    chosen = []
    for (x, y), text in zip(points, texts):
        costs = [_cost(spot.box(x, y, text), points, taken, frame) for spot in _SPOTS]
        spot = _SPOTS[costs.index(min(costs))]
        taken.append(spot.box(x, y, text))
        chosen.append(spot)
    return chosen


def _cost(
    box: Box, points: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> float:
    outside = max(0.0, frame.left - box.left) + max(0.0, box.right - frame.right)
    outside += max(0.0, frame.bottom - box.bottom) + max(0.0, box.top - frame.top)
    texts = sum(box.meets(other) for other in taken)
    dots = sum(box.meets(Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT)) for x, y in points)
    line = sum(
        box.holds(x0 + (x1 - x0) * i / _SAMPLES, y0 + (y1 - y0) * i / _SAMPLES)
        for (x0, y0), (x1, y1) in pairwise(points)
        for i in range(_SAMPLES + 1)
    )
    return 100 * outside + 50 * texts + 20 * dots + 4 * line
