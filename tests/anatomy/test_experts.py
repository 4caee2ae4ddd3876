"""Mixtral's experts as parts: views into three-dimensional tensors, read, written and computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import outputs
from modwright.anatomy import Anatomy, MixtureOfExperts
from modwright.core.errors import InvalidInputError
from modwright.cost import count


def mixture_of(model: Any, index: int = 1) -> MixtureOfExperts:
    found = Anatomy.of(model).blocks[index].mlp
    assert isinstance(found, MixtureOfExperts)
    return found


@pytest.mark.contract("H1")
def test_experts_are_views_of_their_slices(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    mixture = mixture_of(model)
    stored = model.model.layers[1].mlp
    inner = mixture.intermediate_size
    assert (mixture.num_experts, mixture.top_k, inner) == (4, 2, 64)
    for i, expert in enumerate(mixture.experts):
        assert torch.equal(expert.gate.weight, stored.experts.gate_up_proj[i, :inner])
        assert torch.equal(expert.up.weight, stored.experts.gate_up_proj[i, inner:])
        assert torch.equal(expert.down.weight, stored.experts.down_proj[i])
    assert torch.equal(mixture.router.weight, stored.gate.weight)
    names = set(mixture.parameters())
    assert {"router.weight", "experts.0.gate.weight", "experts.3.down.weight"} <= names
    assert len(names) == 1 + 4 * 3
    assert mixture.num_parameters == sum(p.numel() for p in stored.parameters()) + 48


def test_what_is_written_lands_in_its_slice_alone(tiny: Any) -> None:
    model = tiny.copy("tiny-mixtral")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    value = torch.full((64, 48), 0.25)
    Anatomy.of(model).write("blocks.1.mlp.experts.2.up.weight", value)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name}
    stack = model.get_parameter(name)
    assert torch.equal(stack[2, 64:], value)
    rest = before[name].clone()
    rest[2, 64:] = value
    assert torch.equal(stack, rest)
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp\.experts\.2\.up\.weight: shape"):
        Anatomy.of(model).write("blocks.1.mlp.experts.2.up.weight", value[:3])


def test_reading_and_writing_back_changes_no_bit(tiny: Any) -> None:
    model = tiny.copy("tiny-mixtral")
    dense = outputs(model)
    for block in Anatomy.of(model).blocks:
        for name, value in block.mlp.parameters().items():
            block.mlp.write(name, value.clone())
    assert torch.equal(outputs(model), dense)


@torch.no_grad()
def test_the_views_compute_what_the_module_computes(tiny: Any) -> None:
    mixture = mixture_of(tiny("tiny-mixtral"))
    x = torch.randn(7, 48)
    chosen = mixture.choose(x)
    scores = x @ mixture.router.weight.T
    weights = scores.gather(1, chosen).softmax(-1)
    total = torch.zeros(7, 48)
    for token in range(7):
        for place, expert in enumerate(chosen[token].tolist()):
            inner = mixture.inner_of(expert, x[token : token + 1])
            out = inner @ mixture.experts[expert].down.weight.T
            total[token] += weights[token, place] * out[0]
    assert torch.allclose(mixture.module(x[None])[0], total, atol=1e-5)


def test_a_position_pays_for_the_experts_that_work_on_it(tiny: Any) -> None:
    rows = {row.address: row for row in count(tiny("tiny-mixtral"), length=10).rows}
    row = rows["blocks.1.mlp"]
    assert row.parameters == 4 * 3 * 48 * 64 + 4 * 48
    assert row.prefill_macs == 10 * (2 * 3 * 48 * 64 + 4 * 48)
    assert row.decode_macs == 2 * 3 * 48 * 64 + 4 * 48
