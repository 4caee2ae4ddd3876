"""Joint and sampled training of nested MLPs: gradients are those of the widths one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import modwright
from modwright.core.errors import InvalidInputError
from modwright.edits.granularity import granularity, nested_parts, widths_of
from modwright.training.objectives import NextToken, make_objective

BATCH = {"input_ids": torch.arange(3, 21).view(2, 9)}


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(model: Any, objective: Any) -> dict[str, Tensor]:
    objective.step(model, BATCH, lambda loss: loss.backward())
    return gradients(model)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    same = [torch.allclose(one[name], other[name], atol=1e-6) for name in other]
    return one.keys() == other.keys() and all(same)


@pytest.fixture
def whole(tiny: Any) -> Any:
    return modwright.apply(copy.deepcopy(tiny("tiny-llama")), "nest", check=False).model.train()


def test_joint_is_the_sum_of_the_widths_and_sampled_has_its_mean(whole: Any) -> None:
    alone = []
    for width in ("S", "M", "L", "XL"):
        with granularity(whole, width):
            NextToken()(whole, BATCH)[0].backward()
        alone.append(gradients(whole))
    total = {name: sum(one[name] for one in alone) for name in alone[0]}
    mean = {name: grad / 4 for name, grad in total.items()}
    joint = make_objective("nested", {"reduction": "sum"})
    assert close(step(whole, joint), total)  # type: ignore[arg-type]
    assert close(step(whole, make_objective("nested")), mean)
    joint(whole, BATCH)[0].backward()
    assert close(gradients(whole), total)  # type: ignore[arg-type]
    for number, wanted in enumerate(alone):
        shares = [float(number == one) for one in range(4)]
        sampled = make_objective("nested", {"mode": "sampled", "probabilities": shares})
        assert close(step(whole, sampled), wanted)
    assert widths_of(whole) == [96] * 4


def test_neurons_behind_the_width_get_a_gradient_of_zero(whole: Any) -> None:
    shares = [1.0, 0.0, 0.0, 0.0]
    step_of = make_objective("nested", {"mode": "sampled", "probabilities": shares})
    _, named = step_of.step(whole, BATCH, lambda loss: loss.backward())
    assert list(named) == ["width_1_of_4"]
    for part in nested_parts(whole):
        assert not part.module.layer("up").weight.grad[12:].any()
        assert not part.module.layer("down").weight.grad[:, 12:].any()
        assert part.module.layer("up").weight.grad[:12].any()


def test_draws_depend_on_seed_and_progress_alone(whole: Any) -> None:
    def draws(seed: int) -> list[int]:
        objective: Any = make_objective("nested", {"mode": "sampled", "seed": seed})
        found = []
        for done in range(40):
            objective.at(done / 40)
            found.append(objective.drawn(4))
        return found

    assert draws(0) == draws(0) != draws(1)
    assert set(draws(0)) == {0, 1, 2, 3}
    judged = make_objective("nested", {"mode": "sampled"})(whole.eval(), BATCH)[1]
    assert len(judged) == 4


def test_what_cannot_be_is_refused(tiny: Any, whole: Any) -> None:
    for options in (
        {"mode": "sampled", "probabilities": [0.5, 0.4]},
        {"mode": "sampled", "probabilities": [-0.5, 1.5]},
        {"probabilities": [0.5, 0.5]},
        {"mode": "both"},
    ):
        with pytest.raises(InvalidInputError):
            make_objective("nested", options)
    with pytest.raises(InvalidInputError, match="2 probabilities for 4 widths"):
        make_objective("nested", {"mode": "sampled", "probabilities": [0.5, 0.5]}).prepare(whole)
    with pytest.raises(InvalidInputError, match="no nested MLP"):
        make_objective("nested").prepare(tiny("tiny-llama"))
