"""Each width of a nested MLP is the plain MLP of its first neurons."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from modwright.nn import FeedForward, FeedForwardShape
from modwright.nn.channel_mixers.nested_feed_forward import (
    NestedFeedForward,
    NestedShape,
    granularities,
)

ACTS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "sigmoid": torch.sigmoid}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("gated", "biases"), [(False, ""), (False, "ud"), (True, "gud")])
def test_each_width_is_the_mlp_of_its_first_neurons(act: str, gated: bool, biases: str) -> None:
    torch.manual_seed(0)
    mlp = NestedFeedForward(NestedShape(6, 16, act, gated, biases), ACTS[act])
    x = torch.randn(2, 3, 6)
    for width in (1, 2, 5, 16):
        alone = FeedForward(FeedForwardShape(6, width, act, gated, biases), ACTS[act])
        cut = {name.replace(".", "_proj."): t for name, t in mlp.prefix(width).items()}
        alone.load_state_dict({name: t for name, t in cut.items() if t is not None})
        mlp.width = width
        assert torch.allclose(mlp(x), alone(x), atol=1e-6)


def test_neurons_that_are_not_used_have_no_gradient_and_all_have_one_tensor() -> None:
    mlp = NestedFeedForward(NestedShape(6, 16, "gelu", True, "gud", width=5), F.gelu)
    mlp(torch.randn(2, 3, 6)).pow(2).sum().backward()
    grads = {name: p.grad for name, p in mlp.named_parameters()}
    for name, grad in grads.items():
        assert grad is not None and grad.shape == mlp.get_parameter(name).shape
        rest = grad[:, 5:] if name == "down_proj.weight" else grad[5:]
        assert grad.abs().sum() > 0
        if name != "down_proj.bias":
            assert not rest.any()
    assert mlp.macs(2, 7) == 2 * 7 * 3 * 6 * 5


def test_widths_that_are_none_are_refused() -> None:
    assert granularities(96) == [12, 24, 48, 96] and granularities(100) == [16, 25, 50, 100]
    shape = NestedShape(6, 96, "relu", widths=(12, 24, 48, 96))
    assert [shape.width_of(name) for name in ("S", "M", "L", "XL")] == [12, 24, 48, 96]
    for widths in ([8, 8, 96], [24, 12, 96], [12, 48], [0, 96], [12, 96, 100], []):
        with pytest.raises(ValueError, match="width"):
            NestedShape(6, 96, "relu", widths=tuple(widths))
    for asked in (0, 97, "XXL", 1.5, True):
        with pytest.raises(ValueError, match="width"):
            shape.width_of(asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown width 'S'"):
        NestedShape(6, 96, "relu", widths=(12, 96)).width_of("S")
    with pytest.raises(ValueError, match="names are those of up, down"):
        NestedFeedForward(NestedShape(6, 96, "relu", names={"up": "fc1"}), F.relu)
