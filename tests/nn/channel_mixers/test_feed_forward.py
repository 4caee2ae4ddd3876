"""A feed-forward part and its shape."""

from __future__ import annotations

import json

import pytest
import torch

from modwright.nn import FeedForward, FeedForwardShape, MixtureShape, PolyNorm


def test_an_activation_with_parameters_is_a_submodule_on_the_gate() -> None:
    torch.manual_seed(0)
    shape = FeedForwardShape(6, 16, "poly_norm", gated=True)
    part = FeedForward(shape, PolyNorm())
    assert {"act.weight", "act.bias"} < set(part.state_dict())
    x = torch.randn(2, 5, 6)
    by_hand = part.down_proj(part.act(part.gate_proj(x)) * part.up_proj(x))  # type: ignore[misc]
    torch.testing.assert_close(part(x), by_hand)
    part(x).sum().backward()
    assert all(p.grad is not None for p in part.parameters())


def test_arguments_of_an_activation_are_plain_json_and_none_where_there_are_none() -> None:
    plain, told = FeedForwardShape(6, 16, "relu"), {"order": 2}
    assert "activation_kwargs" not in plain.to_dict()
    assert FeedForwardShape(6, 16, "relu", activation_kwargs={}) == plain
    for shape in (
        FeedForwardShape(6, 16, "poly_norm", activation_kwargs=told),
        MixtureShape(6, 16, 4, 2, "poly_norm", activation_kwargs=told),
    ):
        stored = json.loads(json.dumps(shape.to_dict()))
        assert stored["activation_kwargs"] == told and type(shape)(**stored) == shape
        assert len({shape, type(shape)(**stored)}) == 1
    with pytest.raises(ValueError, match="activation_kwargs must map names to values, not 'order'"):
        FeedForwardShape(6, 16, "poly_norm", activation_kwargs="order")  # type: ignore[arg-type]
