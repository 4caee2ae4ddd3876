"""Sums for the fit of an activation: of the chosen blocks, from what passes through them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers import random_data
from modwright.anatomy import Anatomy
from modwright.calibration import calibrate
from modwright.calibration.activation_sums import ActivationSums
from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.nn import PolyNorm
from modwright.nn.activations.fit import CoefficientFit


def collector(*blocks: int) -> ActivationSums:
    return ActivationSums(PolyNorm, {"activation": "poly_norm"}, blocks)


def test_they_are_those_of_the_tensors_that_pass(tiny: Any) -> None:
    model = tiny("tiny-llama")
    statistics = calibrate(model, random_data(model), collector(1, 3))
    assert not list(statistics[0]) and not list(statistics[2])
    truth = CoefficientFit(PolyNorm())
    gate = Anatomy.of(model).blocks[3].mlp.gate.module
    for call in random_data(model):
        with torch.no_grad(), capture({"gate": HookPoint(gate, "output")}, copy=True) as seen:
            model(input_ids=call.input_ids)
        x = seen["gate"].flatten(0, -2)
        truth.update(x, F.silu(x))
    for name, total in truth.sums.items():
        found = statistics[3][f"activation sums/{name}"]
        torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-4)


def test_bytes_are_those_of_the_sums(tiny: Any) -> None:
    blocks, one = Anatomy.of(tiny("tiny-llama")).blocks, collector(1)
    stored = one.start(blocks[1]).result()
    assert one.bytes(blocks[1]) == sum(t.numel() * t.element_size() for t in stored.values())
    assert one.bytes(blocks[0]) == 0 and one.start(blocks[0]).result() == {}
    every = ActivationSums(PolyNorm, {})
    assert every.bytes(blocks[0]) == one.bytes(blocks[1]) and "gram" in every.start(blocks[0]).sums
    assert one.describe() == {
        "collector": "activation sums",
        "activation": "poly_norm",
        "blocks": [1],
    }


def test_powers_that_overflow_are_refused_with_the_address(tiny: Any) -> None:
    model = tiny("tiny-llama")
    block = Anatomy.of(model).blocks[1]
    accumulator = collector(1).start(block)
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp: inputs or targets hold NaN"):
        accumulator.update({"activation": torch.full((2, 96), torch.nan)}, [])


@pytest.mark.parametrize("order", [1, 4])
def test_the_size_follows_the_order(tiny: Any, order: int) -> None:
    block = Anatomy.of(tiny("tiny-llama")).blocks[0]
    one = ActivationSums(partial(PolyNorm, order), {"order": order}, (0,))
    assert one.start(block).sums["gram"].shape == (order + 1, order + 1)
