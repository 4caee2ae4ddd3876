"""What shares memory by chance is saved apart; what is tied by name is saved once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import modwright
from helpers import outputs
from modwright.checkpoint import save
from modwright.checkpoint.saving import state_apart, stored_names


def views_of_one_buffer(model: Any) -> None:
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    buffer = torch.randn(2, 96, 48)
    first.up_proj.weight.data, second.up_proj.weight.data = buffer[0], buffer[1]


def overlapping_views(model: Any) -> None:
    buffer = torch.randn(100, 48)
    model.model.layers[0].mlp.up_proj.weight.data = buffer[:96]
    model.model.layers[1].mlp.up_proj.weight.data = buffer[4:]


def one_memory(model: Any) -> None:
    layers = model.model.layers
    layers[1].mlp.down_proj.weight.data = layers[0].mlp.down_proj.weight.data


def three_in_one(model: Any) -> None:
    layers = model.model.layers
    for layer in layers[1:]:
        layer.input_layernorm.weight.data = layers[0].input_layernorm.weight.data


def every_second_row(model: Any) -> None:
    buffer = torch.randn(192, 48)
    model.model.layers[0].mlp.up_proj.weight.data = buffer[::2]
    model.model.layers[1].mlp.up_proj.weight.data = buffer[1::2]


def one_parameter(model: Any) -> None:
    layers = model.model.layers
    layers[2].mlp.gate_proj.weight = layers[0].mlp.gate_proj.weight


CASES = [
    views_of_one_buffer,
    overlapping_views,
    one_memory,
    three_in_one,
    every_second_row,
    one_parameter,
]


@pytest.mark.parametrize("share", CASES)
def test_fault_B24_shared_memory_is_saved_apart(
    tiny: Any, share: Callable[[Any], None], tmp_path: Path
) -> None:
    model = tiny.copy("tiny-llama")
    share(model)
    answers = outputs(model)
    save(model, tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict()) - {"lm_head.weight"}
    again = modwright.open(tmp_path / "saved").model
    assert torch.equal(outputs(again), answers)


def test_fault_B24_a_head_that_shares_memory_without_a_tie_is_saved_too(
    tiny: Any, tmp_path: Path
) -> None:
    model = tiny.copy("tiny-llama", tie_word_embeddings=False)
    model.lm_head.weight.data = model.model.embed_tokens.weight.data
    save(model, tmp_path / "saved")
    again = modwright.open(tmp_path / "saved").model
    assert torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
    assert torch.equal(outputs(again), outputs(model))


def test_fault_B24_nothing_is_copied_of_other_models(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    state, names = model.state_dict(), stored_names(model)
    assert all(t.data_ptr() == state[n].data_ptr() for n, t in state_apart(model).items())
    for name, source in names.items():
        assert state[name].data_ptr() == state[source].data_ptr()
    count = sum(1 for _ in model.parameters()) + sum(n in state for n, _ in model.named_buffers())
    assert len(set(names.values())) == count


def test_fault_B24_tied_names_stay_one(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    both = nn.Parameter(torch.randn(1, 128, 48).expand(1, 128, 48)[0])
    model.model.embed_tokens.weight = both
    model.tie_weights()
    state = state_apart(model)
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
