"""Massive activations: statistics as a plain loop gives them, interventions, and fits of curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import modwright
from helpers import number_of_hooks
from modwright.analysis.massive_activations import intervention_table
from modwright.analysis.massive_values import (
    detect_massive,
    mean_activations,
    set_activations,
)
from modwright.analysis.trajectory_fit import fit_trajectory, trajectory
from modwright.calibration import token_windows
from modwright.core.capture import capture
from modwright.core.errors import InvalidInputError

IDS = torch.randint(3, 128, (3, 20), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 5


@pytest.fixture
def model() -> torch.nn.Module:
    """Its first token, and no other, is massive from the first block on."""
    made = modwright.open("preset:tiny-llama").model
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone())  # untied
    with torch.no_grad():
        modwright.Anatomy.of(made).outer["embed"].module.weight[5, 7] = 2e4
    return made


def test_statistics_are_those_of_a_loop_whatever_the_batch(model: torch.nn.Module) -> None:
    points = {b.index: b.resid_post for b in modwright.Anatomy.of(model).blocks}
    whole = detect_massive(model, [{"input_ids": IDS}])
    for number, row in enumerate(IDS):
        with capture(points, copy=True) as seen, torch.no_grad():
            model(input_ids=row[None])
        for layer, stream in seen.items():
            size = sorted(stream.abs().flatten().tolist())
            wanted = [*size[:-4:-1], size[(len(size) - 1) // 2]]
            assert whole.stats[number, :, layer].tolist() == pytest.approx(wanted, rel=1e-6)
    padded = {
        "input_ids": torch.cat([torch.zeros(3, 4, dtype=torch.long), IDS], 1),
        "attention_mask": torch.tensor([0] * 4 + [1] * 20).expand(3, 24),
    }
    assert torch.allclose(detect_massive(model, [padded]).stats, whole.stats, rtol=1e-6)
    assert whole.dims == (7,) and whole.emergence == 0 and whole.pairs() == ((0, 7),)
    assert {entry.token for entry in whole.entries} == {5}


def test_the_mean_of_a_constant_changes_nothing_and_zero_does(model: torch.nn.Module) -> None:
    data = [{"input_ids": IDS}]
    hooks = number_of_hooks(model)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        mean = float(mean_activations(model, 0, [0], data)[0][7])
        with set_activations(model, 0, {(0, 7): mean}):
            same = model(input_ids=IDS).logits
        with set_activations(model, 0, {(0, 7): 0.0}):
            other = model(input_ids=IDS).logits
        after = model(input_ids=IDS).logits
    scale = float(before.abs().max())
    assert float((same - before).abs().max()) <= 1e-6 * scale
    assert float((other - before).abs().max()) > 1e-3 * scale
    assert torch.equal(after, before) and number_of_hooks(model) == hooks
    table = intervention_table(model, data, data, detect_massive(model, data))
    assert table["mean"] == pytest.approx(table["intact"], rel=1e-5)
    assert table["zero"] != pytest.approx(table["intact"], rel=1e-5)


def test_decoding_with_a_cache_sees_the_same(model: torch.nn.Module) -> None:
    ids = IDS[:1, :6]
    with set_activations(model, 0, {(0, 7): 0.0, (7, 3): 50.0}), torch.no_grad():
        found = [
            model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "true",
    [
        (0.19914, 0.12452, 1.1244e-4, 0.62122, 0.12193),
        (300.0, 0.045, 2e-4, 0.65, 28.0),
    ],
)
def test_exact_curves_give_their_parameters_back(true: tuple[float, ...]) -> None:
    steps = np.linspace(0, 143_000, 48)
    y = trajectory(steps, *true)
    found = fit_trajectory(steps, y)
    assert list(found.params.values()) == pytest.approx(true, rel=1e-4)
    assert found.r2 is not None and found.r2 > 1 - 1e-9
    fine = np.linspace(1, 143_000, 1_430_000)
    peak = fine[np.argmax(trajectory(fine, *true))]
    assert found.peak_step == pytest.approx(peak, rel=1e-3)


def test_noise_of_two_percent_leaves_the_curve() -> None:
    steps = np.linspace(0, 143_000, 81)
    truth = trajectory(steps, 0.19914, 0.12452, 1.1244e-4, 0.62122, 0.12193)
    span = float(np.ptp(truth))
    seen = truth + np.random.default_rng(0).normal(0, 0.02 * span, 81)
    found = fit_trajectory(steps, seen)
    of_truth = 1 - np.sum((seen - truth) ** 2) / np.sum((seen - seen.mean()) ** 2)
    assert found.r2 is not None and found.r2 > of_truth > 0.98  # least squares do no worse
    assert float(np.abs(np.array(found.fitted) - truth).max()) < 0.03 * span


def test_what_is_wrong_is_refused_in_one_line(model: torch.nn.Module) -> None:
    good = list(range(7))
    for call, told in (
        (lambda: fit_trajectory(good[:5], good[:5]), "6 checkpoints or more"),
        (lambda: fit_trajectory(good[::-1], good), "steps of a trajectory rise"),
        (lambda: fit_trajectory([-1, *good[1:]], good), "steps of a trajectory rise"),
        (lambda: fit_trajectory(good, [*good[:-1], float("nan")]), "value at step 6 is nan"),
        (lambda: detect_massive(model, []), "no batch"),
        (lambda: detect_massive(model, [{"input_ids": IDS[:, :1]}]), "two positions or more"),
        (lambda: mean_activations(model, 9, [0], [{"input_ids": IDS}]), "no block 9"),
        (lambda: mean_activations(model, 0, [20], [{"input_ids": IDS}]), "has a position 20"),
    ):
        with pytest.raises(InvalidInputError, match=told) as refusal:
            call()
        assert "\n" not in str(refusal.value)
    with (
        pytest.raises(InvalidInputError, match="no 4800"),
        set_activations(model, 0, {(0, 4800): 0.0}),
    ):
        model(input_ids=IDS)
    assert fit_trajectory(good, [1.0] * 7).r2 is None


@pytest.mark.models
def test_a_real_model_has_one_dimension() -> None:
    opened = modwright.open("smollm2-135m")
    texts = token_windows(opened.tokenizer, "lee", windows=1, length=64)
    found = detect_massive(opened.model, texts)
    assert found.emergence == 11 and (0, 507) in found.pairs()
    ratios = found.ratios(11)
    others = ratios[[d not in found.dims for d in range(len(ratios))]]
    assert float(ratios[507]) > 5 * float(others.max())
