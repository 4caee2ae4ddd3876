"""What Mamba-2 has of its own: bounds of its steps, its groups, its costs, its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mamba_hosts import mixer_like, random_model
from modwright.nn.token_mixers.mamba2 import Mamba2
from nn.scans import relative


def test_bounds_of_the_steps_are_those_of_transformers() -> None:
    model = random_model("mamba2", time_step_limit=(0.05, 0.2))
    theirs, ours = model.backbone.layers[0].mixer, mixer_like(model.config)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 20, 24)
    assert relative(ours(x)[0], theirs(x)) < 1e-5
    free = mixer_like(random_model("mamba2").config)
    free.load_state_dict(theirs.state_dict())
    assert relative(free(x)[0], theirs(x)) > 1e-4, "the bounds are reached"


def test_bounds_hold_in_every_step_of_decoding() -> None:
    torch.manual_seed(0)
    made = Mamba2(6, d_state=3, head_dim=3, dt_limit=[0.05, 0.06]).double()
    x = torch.randn(1, 6, 6, dtype=torch.float64)
    whole, _ = made(x)
    state, parts = None, []
    for token in x.split(1, 1):
        y, state = made(token, state)
        parts.append(y)
    assert relative(torch.cat(parts, 1), whole) < 1e-12


def test_the_chunk_changes_nothing_but_the_way_there() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 50, 6)
    one, other = (Mamba2(6, d_state=3, head_dim=3, chunk=chunk) for chunk in (7, 64))
    other.load_state_dict(one.state_dict())
    assert relative(other(x)[0], one(x)[0]) < 1e-5


def test_heads_fill_twice_the_width_unless_their_number_is_said() -> None:
    assert Mamba2(32, head_dim=16).n_heads == 4
    wide = Mamba2(32, n_heads=6, head_dim=16)
    assert wide.d_inner == 96 and wide.out_proj.in_features == 96
    assert F.mse_loss(wide(torch.zeros(1, 2, 32))[0], torch.zeros(1, 2, 32)) < 1


def test_costs_are_those_of_its_parts() -> None:
    made = Mamba2(6, d_state=3, head_dim=3, n_groups=2, chunk=5)
    linear = sum(p.weight.numel() for p in made.projections().values())
    token = linear + made.conv1d.weight.numel() + 2 * 12 * 3
    assert made.macs(2, 10) == made.macs(2, 10, cached=99) == 20 * (token + 5 * (2 * 3 + 12))
    assert made.macs(1, 1) == token + 2 * 3 + 12


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"d_model": 0}, "d_model must be at least 1, not 0"),
        ({"d_state": 0}, "d_state must be at least 1"),
        ({"d_conv": 0}, "d_conv must be at least 1"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"n_groups": 0}, "n_groups must be at least 1"),
        ({"n_heads": 0}, "n_heads must be at least 1"),
        ({"n_heads": "many"}, "n_heads must be a number or 'auto', not 'many'"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"head_dim": 5}, "heads of 5 channels do not fill 12"),
        ({"n_groups": 3}, "3 groups do not fill 4 heads"),
    ],
)
def test_sizes_that_make_no_mixer_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mamba2(**{"d_model": 6, "head_dim": 3, **given})
