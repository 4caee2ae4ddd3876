"""A model that was sharded is in one piece afterwards, and is what it was but for its values."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import modwright
from modwright.core.compat.torch import hooks_of
from modwright.training.sharding import WholeAfterwards, kept_environment, shard_blocks


@pytest.fixture
def mesh() -> Iterator[Any]:
    """One process that shards with itself."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def learned(model: Any) -> None:
    """One step of gradient descent."""
    model.zero_grad()
    ids = torch.arange(6)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()


def facts(model: nn.Module) -> list[Any]:
    """What modules are, but for the values of their tensors."""
    return [
        (name, type(module), {k: len(v) for k, v in hooks_of(module).items()}, sorted(vars(module)))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("base", ["byte-llama", "tiny-gpt2"])
def test_a_sharded_model_is_whole_afterwards(base: str, mesh: Any) -> None:
    model = modwright.open(f"preset:{base}").model
    model.get_input_embeddings().weight.requires_grad_(base == "tiny-gpt2")
    alone = copy.deepcopy(model)
    before, parameters = facts(model), dict(model.named_parameters())
    for _ in range(2):
        whole = WholeAfterwards(model)
        shard_blocks(model, mesh)
        whole.on_train_begin(None, None, None)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        assert all(not p.numel() for p in parameters.values() if p.requires_grad)
        learned(model)
        learned(alone)
        whole.restore()
        assert facts(model) == before
        after = dict(model.named_parameters())
        assert after.keys() == parameters.keys()
        assert all(after[name] is p for name, p in parameters.items()), "they are the same objects"
        for (name, ours), theirs in zip(model.state_dict().items(), alone.state_dict().values()):
            assert type(ours) is torch.Tensor and torch.allclose(ours, theirs, atol=1e-6), name
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, alone(ids).logits, atol=1e-5)


def test_what_accelerate_notes_in_the_environment_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with kept_environment():
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
