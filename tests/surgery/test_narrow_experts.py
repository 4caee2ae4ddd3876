"""MoDeGPT on a mixture of experts: each expert learns from the tokens that it works on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modwright.anatomy import Anatomy
from modwright.calibration import SecondMoments, TokenWindows, calibrate
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences
from modwright.surgery import apply, make_method, plan


def data(sequences: int = 16, length: int = 24) -> TokenWindows:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 128, (length,), generator=generator) for _ in range(sequences)]
    return from_sequences(rows, 0, batch_size=4)


@torch.no_grad()
def inputs_of(model: Any, windows: TokenWindows, index: int) -> torch.Tensor:
    """What the mixture of a block reads, all tokens one after the other."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[index].mlp.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].flatten(0, 1))
    )
    for batch in windows:
        model(batch.input_ids, attention_mask=batch.attention_mask)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.contract("H2")
def test_moments_are_those_of_the_tokens_that_an_expert_works_on(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    anatomy = Anatomy.of(model)
    found = calibrate(anatomy, data(), [SecondMoments()])[2]
    x = inputs_of(model, data(), 2)
    stored = model.model.layers[2].mlp
    _, _, chosen = stored.gate(x)
    counts = torch.stack([(chosen == e).any(-1).sum() for e in range(4)])
    assert torch.equal(found["expert_tokens"], counts)
    assert counts.sum() == 2 * len(x)
    for e in range(4):
        mine = x[(chosen == e).any(-1)].double()
        gate, up = (mine @ stored.experts.gate_up_proj[e].T.double()).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        truth = inner.T @ inner / len(mine)
        assert torch.allclose(found["mlp"][e], truth, rtol=1e-4, atol=1e-7)


def test_all_tokens_may_go_through_every_expert(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    anatomy = Anatomy.of(model)
    found = calibrate(anatomy, data(), [SecondMoments(all_tokens=True)])[1]
    assert found["expert_tokens"].tolist() == [16 * 24] * 4
    routed = calibrate(anatomy, data(), [SecondMoments()])[1]
    assert not torch.allclose(found["mlp"], routed["mlp"])


def test_compensation_is_better_than_slicing(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    options = {"sparsity": 0.3, "pairs": ["mlp"], "allocation": "uniform", "round_to": 1}
    decided = plan(model, make_method("modegpt", options), data())
    told = decided.reasons["blocks"][1]
    assert told["intermediate_size"] == 44 and len(told["expert_errors"]) == 4
    assert sum(told["expert_tokens"]) == 2 * 16 * 24
    narrowed = Anatomy.of(apply(model, decided).model).blocks[1].mlp
    moments = calibrate(Anatomy.of(model), data(), [SecondMoments()])[1]["mlp"]
    for e, expert in enumerate(Anatomy.of(model).blocks[1].mlp.experts):
        down = expert.down.weight.double()
        removed = down.clone()
        removed[:, moments[e].diagonal().argsort(descending=True)[:44]] = 0
        sliced = float(torch.trace(removed @ moments[e] @ removed.T))
        assert 0 <= told["expert_errors"][e] <= sliced
    assert narrowed.intermediate_size == 44


def test_experts_with_few_tokens_are_named(tiny: Any) -> None:
    model = tiny("tiny-mixtral")
    method = make_method("modegpt", {"sparsity": 0.2, "pairs": ["mlp"], "round_to": 1})
    (note,) = (n for n in plan(model, method, data(2)).notes if "Experts" in n)
    assert "blocks.0.mlp expert 0 (" in note and "expert_tokens='all'" in note
    enough = make_method(
        "modegpt", {"sparsity": 0.2, "pairs": ["mlp"], "round_to": 1, "expert_tokens": "all"}
    )
    assert not [n for n in plan(model, enough, data(4)).notes if "Experts" in n]


def test_an_expert_that_saw_nothing_is_refused(tiny: Any) -> None:
    same = from_sequences([torch.full((24,), 7)] * 4, 0)  # every position is like every other
    method = make_method("modegpt", {"sparsity": 0.3, "pairs": ["mlp"], "allocation": "uniform"})
    with pytest.raises(
        InvalidInputError, match=r"blocks\.\d\.mlp: no calibration token reached expert"
    ):
        plan(tiny("tiny-mixtral"), method, same)
