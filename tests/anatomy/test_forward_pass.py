from __future__ import annotations

from modwright import cost
from modwright.anatomy.forward_pass import Pass


def test_positions_are_those_of_all_sequences_and_what_is_seen_includes_the_cache() -> None:
    run = Pass(3, 4, cached={"blocks.1.attention": 5})
    assert run.positions == 12
    assert run.attended("blocks.1.attention") == 9 and run.attended("blocks.0.attention") == 4


def test_costs_export_it() -> None:
    assert cost.Pass is Pass
