"""The zeros of a masked model are the same after a training, an average and adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import snapshot
from modwright.anatomy import Anatomy
from modwright.edits import apply, mask
from modwright.edits.masks import masked_parameters
from modwright.training import train

LONG = [{"input_ids": torch.arange(i, i + 8) % 100} for i in range(16)]


def masked(tiny: Any, preset: str) -> Any:
    source = tiny.copy(preset)
    anatomy = Anatomy.of(source)
    attention = anatomy.blocks[1].attention
    change = mask("blocks.1.attention.q.weight", attention.projections()["q"].weight > 0)
    change += mask("blocks.2.mlp.down.weight", anatomy.part("blocks.2.mlp.down").weight < 0)
    return apply(source, change, check=False).model


def zeros(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in masked_parameters(model).items()}


def trained(model: Any, **more: Any) -> None:
    given = {
        "objective": "next_token",
        "max_steps": 4,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 4,
    }
    train(model, LONG, {**given, "weight_decay": 0.1, **more}, log=lambda line: None)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"ema_decay": 0.5},
        {"learns": {"lora": {"r": 2}}},
        {"learns": "block[1:]"},
    ],
    ids=["adamw", "ema", "lora", "some"],
)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_the_set_of_zeros_is_unchanged(tiny: Any, name: str, how: dict[str, Any]) -> None:
    model = masked(tiny, name)
    before, start = zeros(model), snapshot(model)
    trained(model, **how)
    after = zeros(model)
    assert len(before) == 2 and before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert any(not torch.equal(start[n], model.get_parameter(n)) for n in before)


def test_without_a_mask_zeros_learn(tiny: Any) -> None:
    """What the others hold is no property of the optimizer."""
    model = masked(tiny, "tiny-llama")
    del model.config.modwright_masked
    name = "model.layers.2.mlp.down_proj.weight"
    count = int((model.get_parameter(name) == 0).sum())
    trained(model)
    assert int((model.get_parameter(name) == 0).sum()) < count / 10
