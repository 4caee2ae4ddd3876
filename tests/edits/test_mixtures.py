"""Fewer experts and narrower ones: equal to the dense truth, saved, reloaded, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers import edit, outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy, MixtureOfExperts
from modwright.core.errors import InvalidInputError
from modwright.edits import (
    Change,
    keep_expert_neurons,
    keep_experts,
    keep_neurons,
    remove,
    replace_mixture,
    verify,
)


def mixture_of(model: Any, index: int = 1) -> MixtureOfExperts:
    found = Anatomy.of(model).blocks[index].mlp
    assert isinstance(found, MixtureOfExperts)
    return found


def reopened(model: Any, place: Path) -> Any:
    model.save_pretrained(place)
    return transformers.AutoModelForCausalLM.from_pretrained(place)


def test_fewer_experts_are_the_router_without_the_others(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-mixtral")
    before = snapshot(model)
    applied = edit(model, keep_experts(mixture_of(model), [3, 0, 2]))
    assert unchanged(model, before) and not applied.plain
    kept = mixture_of(applied.model)
    assert kept.num_experts == 3 and kept.is_generic
    assert torch.equal(kept.router.weight, mixture_of(model).router.weight[[3, 0, 2]])
    # The truth: the same model whose router cannot choose expert 1, here by a bias of its input.
    x = torch.randn(5, 48)
    scores = x @ mixture_of(model).router.weight[[0, 2, 3]].T
    chosen = torch.tensor([3, 0, 2])[kept.choose(x)].sort(-1).values
    assert torch.equal(chosen, torch.tensor([0, 2, 3])[scores.topk(2).indices].sort(-1).values)
    back = reopened(applied.model, tmp_path / "saved")
    assert torch.equal(outputs(back), outputs(applied.model)) and verify(back).ok
    with pytest.raises(Exception, match=r"num_local_experts|intermediate_size|per-layer"):
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / "saved")


def test_all_experts_in_another_order_compute_the_same(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    applied = edit(model, keep_experts(mixture_of(model), [2, 0, 3, 1]))
    assert worst(outputs(applied.model), outputs(model)) < 1e-5


def test_every_expert_keeps_neurons_of_its_own(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-mixtral")
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(64, generator=generator)[:40] for _ in range(4)]
    applied = edit(model, keep_expert_neurons(mixture_of(model), rows))
    truth = tiny.copy("tiny-mixtral")
    for expert, kept in zip(mixture_of(truth).experts, rows):
        down = expert.down.weight.clone()
        down[:, sorted(set(range(64)) - set(kept.tolist()))] = 0
        expert.down.write("weight", down)
    assert worst(outputs(applied.model), outputs(truth)) < 1e-5
    back = reopened(applied.model, tmp_path / "saved")
    assert torch.equal(outputs(back), outputs(applied.model))
    # It is edited again like any other, and goes like any other.
    narrower = edit(back, keep_neurons(mixture_of(back), range(9))).model
    assert mixture_of(narrower).intermediate_size == 9
    assert Anatomy.of(edit(back, remove(mixture_of(back))).model).blocks[1].mlp is None


def test_what_all_layers_share_is_plain(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-mixtral")
    mixtures = [mixture_of(model, i) for i in range(4)]
    for changes, field, value in (
        ([keep_experts(m, [0, 1, 3]) for m in mixtures], "num_local_experts", 3),
        ([keep_neurons(m, range(40)) for m in mixtures], "intermediate_size", 40),
    ):
        applied = edit(model, sum(changes, Change()))
        assert applied.plain and getattr(applied.model.config, field) == value
        place = tmp_path / field
        applied.model.save_pretrained(place)
        stock = transformers.MixtralForCausalLM.from_pretrained(place)
        assert torch.equal(outputs(stock), outputs(applied.model))


def test_what_cannot_be_is_refused(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    mixture = mixture_of(model)
    with pytest.raises(
        InvalidInputError, match="2 experts work on a position, so at least as many"
    ):
        keep_experts(mixture, [1])
    with pytest.raises(InvalidInputError, match="experts: indices must lie between 0 and 3"):
        keep_experts(mixture, [1, 4])
    with pytest.raises(InvalidInputError, match="neurons of 3 experts; there are 4"):
        keep_expert_neurons(mixture, [range(5)] * 3)
    with pytest.raises(InvalidInputError, match="all experts must have one width"):
        keep_expert_neurons(mixture, [range(5), range(5), range(5), range(6)])
    maps = [[getattr(e, role).weight for e in mixture.experts] for role in ("gate", "up", "down")]
    with pytest.raises(InvalidInputError, match="top_k 9 of 4 experts"):
        replace_mixture(mixture, *maps, top_k=9)


def test_a_loss_over_all_routers_needs_equal_layers(tiny: Any) -> None:
    model = tiny("tiny-mixtral", output_router_logits=True)
    with pytest.raises(InvalidInputError, match="output_router_logits is on"):
        edit(model, keep_experts(mixture_of(model), [0, 1, 3]))
    # A result that stock Mixtral can hold keeps its loss.
    all_of_them = sum((keep_experts(mixture_of(model, i), [0, 1, 3]) for i in range(4)), Change())
    assert all_of_them.edits


def test_router_scores_asked_of_a_call_are_refused_where_a_mixture_keeps_none(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    ids = torch.tensor([[3, 4, 5]])
    narrower = edit(model, keep_expert_neurons(mixture_of(model), [[0, 1, 2]] * 4)).model
    with pytest.raises(InvalidInputError, match="output_router_logits is on"):
        narrower(ids, output_router_logits=True)
    narrower.config.output_router_logits = True
    with pytest.raises(InvalidInputError, match="output_router_logits is on"):
        narrower(ids)
    assert narrower(ids, output_router_logits=False).router_logits is None
    without = edit(model, remove(Anatomy.of(model).blocks[1].mlp)).model
    assert len(without(ids, output_router_logits=True).router_logits) == 3
