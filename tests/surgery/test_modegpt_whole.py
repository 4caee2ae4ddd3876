"""MoDeGPT as a whole: widths, parameters, precisions, plans, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_cases import data, even, method, pairs_of, sequences

from helpers import outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.calibration import SecondMoments, TokenWindows, calibrate
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences
from modwright.edits import Plan
from modwright.edits import apply as apply_plan
from modwright.surgery import apply, make_method, plan
from modwright.surgery import modegpt as module
from modwright.surgery.modegpt import PAIRS, MoDeGpt

# All together


def sizes(model: Any) -> list[tuple[int, int, int]]:
    return [
        (b.mlp.intermediate_size, b.attention.shape.qk_head_dim, b.attention.shape.v_head_dim)
        for b in Anatomy.of(model).blocks
        if b.mlp is not None and b.attention is not None
    ]


def formula(before: tuple[int, int, int], share: float, rotary: bool) -> tuple[int, int, int]:
    inner, qk, v = (int(size * (1 - share)) for size in before)
    return max(1, inner), max(2, qk - qk % 2 if rotary else qk), max(2, v)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_widths_follow_the_allocation(tiny: Any, plain_heads: str, allocation: str) -> None:
    model = tiny.copy(plain_heads)
    before = snapshot(model)
    wanted = method(sparsity=0.25, allocation=allocation)
    decided = plan(model, wanted, data(model))
    applied = apply_plan(model, decided)
    assert applied.verification is not None and applied.verification.ok
    assert unchanged(model, before)
    shares = decided.reasons["sparsity"]
    assert sum(shares) / 4 == pytest.approx(0.25)
    rotary = Anatomy.of(model).blocks[0].attention.shape.rotary_dim > 0  # type: ignore[union-attr]
    expected = [formula(old, s, rotary) for old, s in zip(sizes(model), shares)]
    assert sizes(applied.model) == expected
    if allocation == "global":
        influence = decided.reasons["influence"]
        assert len(set(shares)) == 4
        by_influence = sorted(range(4), key=lambda i: influence[i])
        assert shares == sorted(shares, reverse=True) or by_influence == sorted(
            range(4), key=lambda i: -shares[i]
        )
    else:
        assert shares == [0.25] * 4


@pytest.mark.contract("B7")
def test_parameters_are_those_of_the_formula(tiny: Any) -> None:
    model = tiny("tiny-llama")
    c, dense = model.config, Anatomy.of(model).num_parameters
    applied = apply(model, even(sparsity=0.4), data())
    inner, qk, v = formula((c.intermediate_size, c.head_dim, c.head_dim), 0.4, rotary=True)
    heads = c.num_attention_heads + c.num_key_value_heads
    block = 3 * c.hidden_size * (c.intermediate_size - inner)
    block += c.hidden_size * heads * (2 * c.head_dim - qk - v)
    assert Anatomy.of(applied.model).num_parameters == dense - 4 * block


def test_each_pair_touches_only_its_own_maps(tiny: Any, plain_heads: str) -> None:
    model = tiny(plain_heads)
    dense = sizes(model)[0]
    for position, pair in enumerate(PAIRS):
        found = sizes(apply(model, even(pair), data(model)).model)[0]
        changed = [old != new for old, new in zip(dense, found)]
        assert changed == [i == position for i in range(3)]
        collected = even(pair).collectors()
        assert collected == [SecondMoments(attention=pair != "mlp", mlp=pair == "mlp")]


@pytest.mark.contract("E5")
def test_widths_are_rounded_and_heads_keep_their_least(tiny: Any) -> None:
    model = tiny("tiny-llama")
    rounded = sizes(apply(model, even(round_to=8), data()).model)
    assert {inner for inner, _, _ in rounded} == {64}, "67 of 96"
    tight = even(sparsity=0.8, min_head_dim=7)
    assert set(sizes(apply(model, tight, data()).model)) == {(19, 8, 7)}
    huge = even(sparsity=0.5, min_head_dim=50, round_to=200)
    assert set(sizes(apply(model, huge, data()).model)) == {(96, 12, 12)}


def test_it_can_be_done_again_on_its_own_result(tiny: Any, plain_heads: str) -> None:
    model = tiny(plain_heads)
    first = apply(model, method(sparsity=0.25), data(model)).model
    decided = plan(first, even(sparsity=0.3), data(model))
    second = apply_plan(first, decided)
    assert second.verification is not None and second.verification.ok
    rotary = Anatomy.of(model).blocks[0].attention.shape.rotary_dim > 0  # type: ignore[union-attr]
    assert sizes(second.model) == [formula(old, 0.3, rotary) for old in sizes(first)]
    assert len(set(sizes(first))) > 1, "the layers of the first result differ"


def test_narrowing_rotary_channels_twice_is_dropping_both_sets(tiny: Any) -> None:
    """The second selection reads the rotary channel that each kept channel turns with."""
    model = tiny("tiny-llama")
    once = apply(model, even("query_key", sparsity=0.2), data()).model
    twice = apply(once, even("query_key", sparsity=0.5), data()).model
    straight = apply(model, even("query_key", sparsity=0.66), data()).model
    assert sizes(twice) == sizes(straight)
    # Scores do not depend on the other channels, so in block 0 the same pairs are left.
    index = [Anatomy.of(m).blocks[0].attention.rotary_index() for m in (twice, straight)]
    assert [sorted(row) for row in index[0].tolist()] == [sorted(row) for row in index[1].tolist()]


def test_one_walk_serves_many_settings(tiny: Any, plain_heads: str) -> None:
    model = tiny(plain_heads)
    anatomy = Anatomy.of(model)
    moments = calibrate(anatomy, data(model), [SecondMoments()])
    for wanted in (even("mlp"), even("query_key"), method(sparsity=0.1), even("value_output")):
        shared, own = wanted.plan_from(anatomy, moments), wanted.plan(anatomy, data(model))
        assert shared.edits == own.edits and shared.reasons == own.reasons
        assert shared.tensors.keys() == own.tensors.keys()
        assert all(torch.equal(t, own.tensors[n]) for n, t in shared.tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_as_they_are(tiny: Any, plain_heads: str, dtype: torch.dtype) -> None:
    model = tiny(plain_heads, dtype=dtype)
    applied = apply(model, even(), data(model))
    assert {p.dtype for p in applied.model.parameters()} == {dtype}
    full = apply(tiny(plain_heads), even(), data(model)).model
    assert sizes(applied.model) == sizes(full)


def test_plans_are_saved_with_their_reasons(tiny: Any, plain_heads: str, tmp_path: Path) -> None:
    model = tiny(plain_heads)
    decided = plan(model, method(), data(model))
    json.dumps(decided.to_dict(), allow_nan=False)
    loaded = Plan.load(decided.save(tmp_path / "plan"))
    assert loaded.reasons == json.loads(json.dumps(decided.reasons))
    ours, theirs = apply_plan(model, decided).model, apply_plan(model, loaded).model
    assert torch.equal(outputs(ours), outputs(theirs))
    assert decided.reasons["calibration"] == data(model).recipe


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_forecast_brackets_what_goes(tiny: Any, preset: str, allocation: str) -> None:
    model = tiny(preset)
    anatomy, all_pairs = Anatomy.of(model), pairs_of(model)
    moments = calibrate(anatomy, data(model), [SecondMoments()])
    settings = [(all_pairs, 0.02, 8), (all_pairs, 0.25, 1), (all_pairs, 0.6, 8)]
    for pairs, sparsity, round_to in settings + [((pair,), 0.4, 1) for pair in all_pairs]:
        options = {"pairs": pairs, "allocation": allocation, "round_to": round_to}
        wanted = method(sparsity=sparsity, **options)
        low, high = wanted.parameter_bounds(anatomy)
        applied = apply_plan(model, wanted.plan_from(anatomy, moments), check=False)
        gone = anatomy.num_parameters - Anatomy.of(applied.model).num_parameters
        assert low <= gone <= high
    assert method(sparsity=0.0, pairs=all_pairs).parameter_bounds(anatomy) == (0, 0)


def test_few_tokens_are_said(tiny: Any) -> None:
    few = from_sequences(sequences()[:2], 0)
    notes = plan(tiny("tiny-llama"), even("mlp"), few).notes
    assert len(notes) == 1
    assert "48 calibration tokens are fewer than the 96 neurons" in notes[0]
    assert plan(tiny("tiny-llama"), even("query_key"), few).notes == ()
    assert plan(tiny("tiny-llama"), even("mlp"), data()).notes == ()


# What is refused

OPTIONS = {
    "whole": ({"sparsity": 1.0}, r"sparsity 1.0 must lie in \[0, 1\)"),
    "negative": ({"sparsity": -0.1}, r"must lie in \[0, 1\)"),
    "no number": ({"sparsity": math.nan}, r"must lie in \[0, 1\)"),
    "over the cap": ({"sparsity": 0.5, "max_sparsity": 0.4}, "0.5 cannot be .* at most 0.4"),
    "cap": ({"max_sparsity": 1.5}, "must lie between 0 and 1"),
    "epsilon": ({"epsilon": 0}, "epsilon 0.0 must be positive"),
    "pair": ({"pairs": ["mlp", "qk"]}, "'mlp', 'query_key' or 'value_output'.*'qk'"),
    "no pair": ({"pairs": []}, "each of mlp, query_key, value_output at most once"),
    "twice": ({"pairs": ["mlp", "mlp"]}, "at most once"),
    "allocation": ({"allocation": "even"}, "'global' or 'uniform'.*'even'"),
    "sharing": ({"shared_values": "both"}, "'joint' or 'two_step'.*'both'"),
    "least": ({"min_head_dim": 0}, "min_head_dim and round_to must be at least 1"),
    "rounding": ({"round_to": 0}, "min_head_dim and round_to must be at least 1"),
    "ridge": ({"ridge_mlp": 0.0}, "ridges must be positive"),
    "unknown": ({"ratio": 0.2}, "unknown option of modegpt 'ratio'; valid values: sparsity"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options_are_refused(case: str) -> None:
    options, words = OPTIONS[case]
    with pytest.raises(InvalidInputError, match=words) as refusal:
        make_method("modegpt", options)
    assert "\n" not in str(refusal.value)


def test_bad_options_are_refused_in_python_too() -> None:
    for options, words in (
        ({"pairs": ("mlp", "qk")}, "unknown pair 'qk'; valid values: mlp, query_key"),
        ({"allocation": "even"}, "unknown allocation 'even'; valid values: global, uniform"),
        ({"shared_values": "no"}, "unknown shared_values 'no'; valid values: joint, two_step"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            MoDeGpt(**options)  # type: ignore[arg-type]


def test_without_data_it_is_refused(tiny: Any) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(InvalidInputError, match="modegpt needs calibration data"):
        plan(model, method())
    with pytest.raises(InvalidInputError, match="modegpt needs calibration data"):
        method().plan(Anatomy.of(model))
    with pytest.raises(InvalidInputError, match="no calibration data"):
        plan(model, method(), TokenWindows((), {"tokens": 0}))


def test_activations_that_are_not_finite_are_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.model.layers[2].self_attn.v_proj.weight.data[0, 0] = math.nan
    with pytest.raises(InvalidInputError, match="after block 2 are not finite; check the weights"):
        plan(model, method(), data())


def test_a_quantised_model_is_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.is_quantized = True
    with pytest.raises(InvalidInputError, match="open it dequantised"):
        plan(model, method(), data())


def test_titles_name_what_is_narrowed() -> None:
    assert method(sparsity=0.25).title() == "MoDeGPT 25% of MLP, query/key, value/output"
    assert even("mlp").title() == "MoDeGPT 30% of MLP"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
