"""What Mamba has of its own: the weight of its steps, its costs, its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM

from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.stock_mamba import stock_arguments
from nn.scans import relative


def test_the_weight_of_the_steps_begins_as_wide_as_its_rank_says() -> None:
    torch.manual_seed(0)
    reach = 4**-0.5
    assert 0.9 * reach < float(Mamba1(64).dt_proj.weight.abs().max()) <= reach
    assert (Mamba1(64, dt_init="constant", dt_scale=3.0).dt_proj.weight == 1.5).all()
    assert Mamba1(40).dt_rank == 3, "a sixteenth, rounded up"


def test_a_model_of_130_million_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        mixer = Mamba1(768)
    block = sum(p.numel() for p in mixer.parameters()) + 768
    assert block == 3_771_648
    assert 24 * block + 50_280 * 768 + 768 == 129_135_360


def test_costs_are_those_of_its_parts() -> None:
    made = Mamba1(6, d_state=3)
    linear = sum(p.weight.numel() for p in made.projections().values())
    token = linear + made.dt_proj.weight.numel() + made.conv1d.weight.numel() + 3 * 12 * 3
    assert made.macs(2, 5) == made.macs(2, 5, cached=100) == 10 * token
    frozen = Mamba1(6, d_state=3, selective=False)
    assert made.macs(1, 1) - frozen.macs(1, 1) == made.x_proj.weight.numel()
    assert frozen.projections().keys() == {"in_proj", "out_proj"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"d_model": 0}, "d_model must be at least 1, not 0"),
        ({"d_state": 0}, "d_state must be at least 1"),
        ({"d_conv": 0}, "d_conv must be at least 1"),
        ({"dt_rank": 0}, "dt_rank must be at least 1"),
        ({"dt_rank": "many"}, "dt_rank must be a number or 'auto', not 'many'"),
        ({"expand": 0}, r"expand \* d_model must be at least 1"),
    ],
)
def test_sizes_that_make_no_mixer_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mamba1(**{"d_model": 6, **given})


def test_the_norms_of_falcon_mamba_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    config = FalconMambaConfig(hidden_size=24, state_size=8, num_hidden_layers=1, vocab_size=5)
    theirs = FalconMambaForCausalLM(config).eval().backbone.layers[0].mixer
    told = stock_arguments(config)
    ours, bare = Mamba1(**told), Mamba1(**{**told, "read_norm_eps": None})
    for mixer in (ours, bare):
        mixer.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 24)
    assert relative(ours(x)[0], theirs(x)) < 1e-5
    assert relative(bare(x)[0], theirs(x)) > 1e-3
