"""What a name stands for at a place, and the arguments that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import register_part
from modwright.edits.placeable import Argument, arguments_of
from modwright.nn.component import component


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with registries_restored():
        yield


def test_components_and_parts_say_what_they_take() -> None:
    @component("toy_of_two", kind="token_mixer")
    def make(hidden_size: int, rank: int = 4) -> nn.Module:
        return nn.Linear(hidden_size, rank)

    register_part("toy_part")(lambda config, current, width: nn.Identity())
    register_part("toy_of_any")(lambda config, **fields: nn.Identity())
    assert arguments_of("toy_of_two", "attention") == {
        "hidden_size": Argument(True),
        "rank": Argument(False),
    }
    assert arguments_of("toy_part", "mlp") == {"width": Argument(True)}
    of_any = arguments_of("toy_of_any", "mlp")
    assert not of_any and of_any.others
    mamba = arguments_of("mamba1", "attention")
    assert mamba["d_model"].needed and not mamba["d_state"].needed and mamba.others
    mixture = arguments_of("mixture", "mlp")
    assert not mixture.others and mixture["top_k"] == Argument(True, of_stock=True)


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("toy_mixer", "mlp", "is of the kind token_mixer; at mlp stands a channel_mixer"),
        ("toy_norm", "attention", "is of the kind norm; at attention stands a token_mixer"),
        ("feed_froward", "mlp", "unknown component 'feed_froward'.*'feed_forward'"),
    ],
)
def test_what_does_not_stand_there_is_refused(name: str, place: Any, says: str) -> None:
    component("toy_mixer", kind="token_mixer")(nn.GRUCell)
    component("toy_norm", kind="norm")(nn.GroupNorm)
    with pytest.raises(InvalidInputError, match=says):
        arguments_of(name, place)
