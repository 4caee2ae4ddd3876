"""Multiply-accumulates of a part in one pass, as its view answers; and of a whole module."""

from __future__ import annotations

from modwright.anatomy import Part
from modwright.anatomy.forward_pass import Pass
from modwright.core.errors import InvalidInputError
from modwright.core.macs import forward_macs

__all__ = ["Pass", "at_least", "forward_macs", "part_macs"]


def at_least(lowest: int, **values: object) -> None:
    """Refuses a named value that is not a whole number from ``lowest`` on."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise InvalidInputError(
                f"{name} must be a whole number, {lowest} or more, not {value!r}"
            )


def part_macs(part: Part, run: Pass) -> int:
    """Multiply-accumulates of a part in one pass, matrix products only: :meth:`Part.macs`.

    Raises:
        UnsupportedArchitecture: there is no formula for this kind of part.

    Example:
        >>> from torch import nn
        >>> from modwright.anatomy import Embedding
        >>> part_macs(Embedding(nn.Linear(8, 100), "head"), Pass(sequences=2, tokens=3))
        4800
    """
    return part.macs(run)
