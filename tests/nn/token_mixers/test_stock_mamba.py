"""What configs of transformers say of their mixers, and when a component is one of them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig

from modwright.nn.component import COMPONENTS
from modwright.nn.token_mixers.stock_mamba import stock_arguments

SMALL: dict[str, Any] = {"hidden_size": 24, "state_size": 8, "num_hidden_layers": 2}
CONFIGS = {
    "mamba1": MambaConfig(**SMALL, use_bias=True, expand=3),
    "mamba2": Mamba2Config(
        **SMALL, num_heads=6, head_dim=8, n_groups=2, time_step_limit=(0.01, 0.5)
    ),
}


def same(name: str, config: Any, **changed: Any) -> bool:
    ask = COMPONENTS[name].stock_tensors
    assert ask is not None
    return ask(config, **{**stock_arguments(config), **changed})


@pytest.mark.parametrize("name", CONFIGS)
def test_arguments_make_a_mixer_of_the_sizes_of_the_config(name: str) -> None:
    config = CONFIGS[name]
    mixer: Any = COMPONENTS[name].make(**stock_arguments(config))
    assert (mixer.d_model, mixer.d_state) == (24, 8)
    assert mixer.d_inner == (72 if name == "mamba1" else 48)
    assert (mixer.in_proj.bias is not None) == config.use_bias
    assert same(name, config)


@pytest.mark.parametrize(
    ("name", "changed", "is_same"),
    [
        ("mamba1", {"dt_min": 0.01, "dt_init": "constant", "out_proj_scale": 0.5}, True),
        ("mamba1", {"dt_rank": "auto"}, True),
        ("mamba1", {"expand": 2}, False),
        ("mamba1", {"bias": False}, False),
        ("mamba1", {"selective": False}, False),
        ("mamba1", {"clamp_decay": True}, False),
        ("mamba1", {"read_norm_eps": 1e-6}, False),
        ("mamba2", {"chunk": 7}, True),
        ("mamba2", {"n_heads": "auto"}, True),
        ("mamba2", {"n_groups": 1}, False),
        ("mamba2", {"dt_limit": [0.0, None]}, False),
        ("mamba2", {"norm_eps": 1e-6}, False),
    ],
    ids=str,
)
def test_a_component_is_the_stock_mixer_if_its_function_is(
    name: str, changed: dict[str, Any], is_same: bool
) -> None:
    assert same(name, CONFIGS[name], **changed) is is_same


def test_the_norms_of_falcon_mamba_are_part_of_the_function() -> None:
    config = FalconMambaConfig(**SMALL)
    assert stock_arguments(config)["read_norm_eps"] == config.mixer_rms_eps
    assert same("mamba1", config) and not same("mamba1", config, read_norm_eps=None)


def test_other_activations_and_other_models_are_not_theirs() -> None:
    assert not same("mamba1", MambaConfig(**SMALL, hidden_act="gelu"))
    told = stock_arguments(CONFIGS["mamba1"])
    ask = COMPONENTS["mamba1"].stock_tensors
    assert ask is not None and not ask(CONFIGS["mamba2"], **told)


def test_a_width_that_is_no_multiple_is_told_by_its_ratio() -> None:
    config = MambaConfig(**SMALL)
    config.intermediate_size = 30
    assert COMPONENTS["mamba1"].make(**stock_arguments(config)).d_inner == 30  # type: ignore[union-attr]
