"""What is computed in float32 or more."""

from __future__ import annotations

import torch

from modwright.nn.precision import at_least_float32, full_precision


def test_the_widest_type_wins_and_half_precision_never() -> None:
    half, wide = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert at_least_float32(half, None, half.bfloat16()) == torch.float32
    assert at_least_float32(half, wide) == torch.float64


def test_products_inside_are_not_cast_and_autocast_goes_on_behind() -> None:
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with full_precision(x.to("meta")):
        assert (x @ x).dtype == torch.float32
