"""Activations by name are the registered components of that kind."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from modwright.core.registry import registries_restored
from modwright.nn.activations import ACTIVATIONS, make_activation
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.component import component, component_of, components


def test_every_registered_activation_is_made_and_keeps_shapes() -> None:
    x = torch.randn(2, 3, 4)
    assert list(ACTIVATIONS) == list(components("activation")) and len(ACTIVATIONS) >= 10
    for name in ACTIVATIONS:
        assert make_activation(name)(x).shape == x.shape


def test_those_of_torch_come_first_and_are_torchs_own() -> None:
    assert list(ACTIVATIONS)[:3] == ["gelu", "relu", "relu6"]
    made = make_activation("gelu")
    assert type(made) is nn.GELU and made.approximate == "none"
    # A module of torch's may stand anywhere; it is no component for it.
    assert component_of(nn.Identity()) is None


def test_an_activation_that_is_registered_elsewhere_is_made_too() -> None:
    with registries_restored():

        @component("squared", kind="activation", reads="either")
        class Squared(nn.Module):
            def __init__(self, scale: float = 1.0) -> None:
                super().__init__()
                self.scale = scale

            def forward(self, x: Tensor) -> Tensor:
                return self.scale * x.relu() ** 2

        assert make_activation("squared", scale=2.0)(torch.tensor(3.0)) == 18
        assert isinstance(Mlp(4, 8, act="squared").act, Squared)
    assert "squared" not in ACTIVATIONS


def test_what_is_no_activation_is_refused_with_all_names() -> None:
    with registries_restored():
        component("centered", kind="norm")(nn.LayerNorm)
        for name in ("centered", "gelUU"):
            with pytest.raises(ValueError, match=f"unknown activation '{name}'") as refused:
                make_activation(name)
            assert "valid values: gelu, relu, " in str(refused.value)
            assert not re.search(r"\bcentered,|\n", str(refused.value))
        assert "centered" in components()


def test_an_mlp_of_maps_norms_the_channels_of_each_position() -> None:
    torch.manual_seed(0)
    tokens, maps = Mlp(6, 12, act="poly_norm"), Mlp(6, 12, act="poly_norm", layout="map")
    state = {k: v[..., None, None] if v.dim() == 2 else v for k, v in tokens.state_dict().items()}
    maps.load_state_dict(state)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(maps(x), tokens(x.movedim(1, -1)).movedim(-1, 1))
