from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modwright.nn import FeedForward, FeedForwardShape
from modwright.nn.activations.width import equal_parameter_width


@pytest.mark.parametrize(
    ("hidden", "swiglu", "width"), [(2048, 5504, 8256), (2048, 1024, 1536), (96, 256, 384)]
)
def test_the_widths_of_the_paper(hidden: int, swiglu: int, width: int) -> None:
    assert equal_parameter_width(hidden, swiglu) == width
    assert 2 * hidden * width == 3 * hidden * swiglu


def test_modules_of_both_kinds_have_equally_many_weights() -> None:
    gated = FeedForward(FeedForwardShape(12, 32, "silu", gated=True), nn.SiLU())
    plain = FeedForward(FeedForwardShape(12, equal_parameter_width(12, 32), "relu"), nn.ReLU())
    sizes = [sum(p.numel() for p in part.parameters()) for part in (gated, plain)]
    assert sizes[0] == sizes[1]


@given(st.integers(1, 4096), st.integers(1, 20000))
def test_it_is_never_larger_and_one_more_would_be(hidden: int, swiglu: int) -> None:
    width = equal_parameter_width(hidden, swiglu)
    assert 2 * hidden * width <= 3 * hidden * swiglu < 2 * hidden * (width + 1)


@pytest.mark.parametrize(("hidden", "swiglu"), [(0, 8), (8, 0), (-1, 8)])
def test_sizes_that_cannot_be_are_refused(hidden: int, swiglu: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        equal_parameter_width(hidden, swiglu)
