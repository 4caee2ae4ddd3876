"""What sentences of several metrics need: how a count changed, and when nothing did."""

from __future__ import annotations

from modwright.core.formatting import share_text
from modwright.metrics.column import StageLike, differing, ratio

__all__ = ["SAME", "changed_by", "cost_change"]

SAME = 0.0005
"""A smaller change of a ratio is none."""


def cost_change(before: StageLike, after: StageLike, key: str) -> tuple[float, float, float] | None:
    """After / before of a counted cost, with both numbers; None where they cannot be compared."""
    one, two = before.cost.get(key), after.cost.get(key)
    change = None if differing(before, after, "cost") else ratio(one, two)
    return None if change is None or one is None or two is None else (change, one, two)


def changed_by(change: float, less: str, more: str) -> str:
    """A ratio in words.

    Example:
        >>> changed_by(0.9, "fewer", "more"), changed_by(1.0, "fewer", "more")
        ('10.0 % fewer', 'unchanged')
    """
    if abs(change - 1) < SAME:
        return "unchanged"
    return f"{share_text(abs(change - 1))} {less if change < 1 else more}"
