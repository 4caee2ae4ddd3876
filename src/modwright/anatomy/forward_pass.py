"""One forward pass, as far as what a part costs depends on it.

Axes: T new positions of a sequence, S positions that they attend to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch.

    Attributes:
        sequences: rows of the batch.
        tokens: new positions T of each sequence.
        cached: positions that an attention finds in its key/value cache, by its address.
        counted: multiply-accumulates for one sequence of parts without a formula, by address.

    Example:
        >>> run = Pass(sequences=2, tokens=3, cached={"blocks.0.attention": 7})
        >>> run.positions, run.attended("blocks.0.attention"), run.attended("blocks.1.attention")
        (6, 10, 3)
    """

    sequences: int
    tokens: int
    cached: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)

    @property
    def positions(self) -> int:
        """New positions of the whole batch."""
        return self.sequences * self.tokens

    def attended(self, address: str) -> int:
        """S: what the attention at ``address`` sees, the new positions included."""
        return self.tokens + self.cached.get(address, 0)
