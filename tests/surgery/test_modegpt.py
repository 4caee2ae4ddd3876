"""MoDeGPT on tiny models of every family, against what its decompositions promise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy, Attention, Tap
from modwright.calibration import Grams, TokenWindows, calibrate
from modwright.calibration.text import from_sequences
from modwright.edits import Change, Plan, Replace
from modwright.edits import apply as apply_plan
from modwright.errors import Refused
from modwright.surgery import apply, make_method, plan
from modwright.surgery import modegpt as module
from modwright.surgery.modegpt import PAIRS, MoDeGpt


def sequences(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (24,), generator=generator) for _ in range(8)]


def data(seed: int = 0) -> TokenWindows:
    return from_sequences(sequences(seed), 0, batch_size=4)


def method(**options: Any) -> MoDeGpt:
    found: MoDeGpt = make_method("modegpt", {"round_to": 1, **options})
    return found


def even(*pairs: str, sparsity: float = 0.3, **options: Any) -> MoDeGpt:
    """The same sparsity in every block, for some of the pairs."""
    return method(pairs=pairs or PAIRS, sparsity=sparsity, allocation="uniform", **options)


@torch.no_grad()
def tapped(model: Any, tap: Tap) -> Tensor:
    """What a tap reads in the model's own forward over the calibration data: (n, d), float64."""
    seen: list[Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        value = given if tap.side == "input" else out[0] if isinstance(out, tuple) else out
        seen.append(value.flatten(0, 1).double())

    handle = tap.module.register_forward_hook(hook, with_kwargs=True)
    for ids in sequences():
        model.base_model(input_ids=ids[None])
    handle.remove()
    return torch.cat(seen)


# Nothing to cut


@pytest.mark.parametrize("given", [None, data()])
def test_without_sparsity_nothing_changes(
    tiny: Any, preset: str, given: TokenWindows | None
) -> None:
    model = tiny(preset)
    applied = apply(model, method(sparsity=0.0), given)
    assert applied.plain and worst(outputs(applied.model), outputs(model)) <= 1e-5
    assert not method(sparsity=0.0).wants_data()


def test_what_rounds_to_the_whole_is_left_alone(tiny: Any) -> None:
    model = tiny("tiny-llama")
    decided = plan(model, even("mlp", sparsity=0.02, round_to=8), data())
    assert decided.edits == ()
    told = decided.reasons["blocks"][0]
    assert told["intermediate_size"] == model.config.intermediate_size


# Type I


def test_the_error_of_the_mlp_is_the_one_foretold(tiny: Any, preset: str) -> None:
    model = tiny(preset, dtype=torch.float64)
    decided = plan(model, even("mlp"), data())
    result = apply_plan(model, decided).model
    old, new = Anatomy.of(model).blocks[0].mlp, Anatomy.of(result).blocks[0].mlp
    assert old is not None and new is not None
    keep = int(old.intermediate_size * 0.7)
    assert new.intermediate_size == keep < old.intermediate_size
    # Nothing before the first MLP has changed, so both read the same.
    off = tapped(model, Tap(old.down.module, "output"))
    off = off - tapped(result, Tap(new.down.module, "output"))
    measured = float(off.square().sum() / len(off))
    assert decided.reasons["blocks"][0]["mlp_error"] == pytest.approx(measured, rel=1e-6)

    a, index = tapped(model, old.inner), kept_rows(old.up.weight, new.up.weight)
    sliced = a @ old.down.weight.T - a[:, index] @ old.down.weight[:, index].T
    assert measured < float(sliced.square().sum() / len(a))


def kept_rows(old: Tensor, new: Tensor) -> list[int]:
    return [int((old == row).all(-1).nonzero()) for row in new]


def test_gate_up_and_biases_keep_the_same_neurons(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    result = apply(model, even("mlp"), data()).model
    for before, after in zip(Anatomy.of(model).blocks, Anatomy.of(result).blocks):
        old, new = before.mlp, after.mlp
        assert old is not None and new is not None
        index = kept_rows(old.up.weight, new.up.weight)
        assert index == sorted(index)
        if old.gate is not None and new.gate is not None:
            assert torch.equal(new.gate.weight, old.gate.weight[index])
        if old.up.bias is not None and new.up.bias is not None:
            assert torch.equal(new.up.bias, old.up.bias[index])
            assert old.down.bias is not None and new.down.bias is not None
            assert torch.equal(new.down.bias, old.down.bias)


# Type II


def channels_by_hand(attention: Attention, x: Tensor, keep: int) -> list[list[int]]:
    """The channels of each key/value head with the largest scores, from the activations."""
    shape = attention.shape

    def squares(role: str, heads: int) -> Tensor:
        projection = attention.projections()[role]
        out = x @ projection.weight.double().T
        if projection.bias is not None:
            out = out + projection.bias.double()
        return out.square().mean(0).view(heads, shape.qk_head_dim)

    q, k = squares("q", shape.num_heads), squares("k", shape.num_kv_heads)
    group = shape.num_heads // shape.num_kv_heads
    kept = []
    for head in range(shape.num_kv_heads):
        score = (q[head * group : (head + 1) * group] * k[head]).sum(0)
        half = shape.rotary_dim // 2
        if not half:
            kept.append(score.argsort(descending=True)[:keep].tolist())
            continue
        still = list(range(shape.rotary_dim, shape.qk_head_dim))
        still.sort(key=lambda c: -float(score[c]))
        pairs = [(j, j + half) for j in range(half)] + list(zip(still[::2], still[1::2]))
        pairs.sort(key=lambda pair: -float(score[pair[0]] + score[pair[1]]))
        kept.append([channel for pair in pairs[: keep // 2] for channel in pair])
    return kept


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_narrow_scores_are_dense_scores_without_the_dropped_channels(
    tiny: Any, preset: str, sparsity: float
) -> None:
    model, reference = tiny(preset), tiny.copy(preset)
    applied = apply(model, even("query_key", sparsity=sparsity), data())
    for index, block in enumerate(Anatomy.of(reference).blocks):
        attention = block.attention
        assert attention is not None
        shape = attention.shape
        keep = int(shape.qk_head_dim * (1 - sparsity))
        keep = max(2, keep - keep % 2 if shape.rotary_dim else keep)
        original = Anatomy.of(model).blocks[index].attention
        assert original is not None
        kept = channels_by_hand(original, tapped(model, original.core_in), keep)
        owner = [h // (shape.num_heads // shape.num_kv_heads) for h in range(shape.num_heads)]
        for projection, heads in ((attention.q, owner), (attention.k, range(len(kept)))):
            stays = torch.zeros(len(heads), shape.qk_head_dim, dtype=torch.bool)
            for row, head in enumerate(heads):
                stays[row, kept[head]] = True
            for name, tensor in projection.parameters().items():
                mask = stays.flatten() if name == "bias" else stays.flatten()[:, None]
                projection.write(name, tensor * mask)
        new = Anatomy.of(applied.model).blocks[index].attention
        assert new is not None and new.shape.qk_head_dim == keep
        assert new.shape.scaling == shape.scaling and new.shape.v_head_dim == shape.v_head_dim
    assert worst(outputs(applied.model), outputs(reference)) <= 1e-5
    assert worst(outputs(applied.model), outputs(model)) > 1e-3


def test_biases_count_in_the_scores(tiny: Any) -> None:
    """A channel whose weights are small and whose bias is large carries much."""
    model = tiny.copy("tiny-gpt2")
    attention = Anatomy.of(model).blocks[0].attention
    assert attention is not None and attention.q.bias is not None
    for projection in (attention.q, attention.k):
        weight, bias = projection.weight.clone(), torch.zeros_like(projection.bias)
        weight[3] *= 1e-3
        bias[3] = 5.0
        projection.write("weight", weight)
        projection.write("bias", bias)
    result = apply(model, even("query_key", sparsity=0.9, max_sparsity=0.95), data()).model
    new = Anatomy.of(result).blocks[0].attention
    assert new is not None and new.q.bias is not None
    assert 5.0 in new.q.bias.view(4, -1)[0].tolist()


def test_queries_that_are_normalized_are_refused(tiny: Any) -> None:
    model = with_query_norms(tiny("tiny-llama"))
    for asked in (
        lambda: plan(model, method(), data()),
        lambda: method().plan_from(
            Anatomy.of(model), calibrate(Anatomy.of(model), data(), [Grams()])
        ),
        lambda: plan(model, even("query_key", sparsity=0.0), None),
    ):
        with pytest.raises(Refused, match=r"blocks\.1\.attention normalizes its queries.*leave"):
            asked()
    assert apply(model, method(pairs=("mlp", "value_output")), data()).verification.ok


def with_query_norms(model: Any) -> Any:
    """The second attention normalizes queries and keys."""
    anatomy = Anatomy.of(model)
    attention = anatomy.blocks[1].attention
    shape = {**attention.shape.to_json(), "qk_norm_eps": 1e-6}
    width = attention.shape.qk_head_dim
    tensors = {f"{attention.address}.{role}_norm.weight": torch.ones(width) for role in "qk"}
    for role, projection in attention.projections().items():
        tensors[f"{attention.address}.{role}.weight"] = projection.weight
    edit_ = Replace(attention.address, "attention", shape)
    return apply_plan(model, Plan.of(anatomy, "test", Change((edit_,), tensors))).model


# Type III


@pytest.mark.parametrize("shared_values", ["joint", "two_step"])
def test_values_of_a_lower_rank_lose_nothing_and_biases_are_folded(
    tiny: Any, preset: str, shared_values: str
) -> None:
    """One channel of every value is a mixture of others; biases are large."""
    model = tiny.copy(preset, dtype=torch.float64)
    for block in Anatomy.of(model).blocks:
        attention = block.attention
        assert attention is not None
        value = attention.read_v().clone()
        value[:, -1] = 0.5 * value[:, 0] - 2 * value[:, 1]
        attention.v.write("weight", value.flatten(0, 1))
        if attention.v.bias is not None:
            attention.v.write("bias", attention.v.bias + 1)
    width = value.shape[1]
    applied = apply(
        model, even("value_output", sparsity=0.5 / width, shared_values=shared_values), data()
    )
    for block in Anatomy.of(applied.model).blocks:
        assert block.attention is not None
        assert block.attention.shape.v_head_dim == width - 1
        assert block.attention.shape.qk_head_dim == width
        assert block.attention.v.bias is None
    assert worst(outputs(applied.model), outputs(model)) <= 1e-5


def test_the_error_of_values_is_the_discarded_spectrum(tiny: Any, preset: str) -> None:
    model = tiny(preset, dtype=torch.float64)
    decided = plan(model, even("value_output", ridge_vo=1e-9), data())
    new = Anatomy.of(apply_plan(model, decided).model).blocks[0].attention
    old = Anatomy.of(model).blocks[0].attention
    assert old is not None and new is not None
    assert new.shape.v_head_dim == int(old.shape.v_head_dim * 0.7)
    x, measured = tapped(model, old.core_in), 0.0
    for head, kv in enumerate(old.kv_of_head().tolist()):
        whole = old.read_o()[head].T @ old.read_v()[kv]
        narrow = new.read_o()[head].T @ new.read_v()[kv]
        measured += float((x @ (whole - narrow).T).square().sum() / len(x))
    foretold = decided.reasons["blocks"][0]["value_output_error"]
    assert foretold == pytest.approx(measured, rel=1e-3)


def test_jointly_is_better_only_where_values_are_shared(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    errors = {
        how: [
            told["value_output_error"]
            for told in plan(model, even("value_output", shared_values=how), data()).reasons[
                "blocks"
            ]
        ]
        for how in ("joint", "two_step")
    }
    shape = Anatomy.of(model).blocks[0].attention.shape  # type: ignore[union-attr]
    for joint, steps in zip(errors["joint"], errors["two_step"]):
        if shape.num_kv_heads < shape.num_heads:
            assert joint < steps
        else:
            assert joint == pytest.approx(steps)


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
def test_widths_follow_the_allocation(tiny: Any, preset: str, allocation: str) -> None:
    model = tiny.copy(preset)
    before = snapshot(model)
    wanted = method(sparsity=0.25, allocation=allocation)
    decided = plan(model, wanted, data())
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


def test_parameters_are_those_of_the_formula(tiny: Any) -> None:
    model = tiny("tiny-llama")
    c, dense = model.config, Anatomy.of(model).num_parameters
    applied = apply(model, even(sparsity=0.4), data())
    inner, qk, v = formula((c.intermediate_size, c.head_dim, c.head_dim), 0.4, rotary=True)
    heads = c.num_attention_heads + c.num_key_value_heads
    block = 3 * c.hidden_size * (c.intermediate_size - inner)
    block += c.hidden_size * heads * (2 * c.head_dim - qk - v)
    assert Anatomy.of(applied.model).num_parameters == dense - 4 * block


def test_each_pair_touches_only_its_own_maps(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    dense = sizes(model)[0]
    for position, pair in enumerate(PAIRS):
        found = sizes(apply(model, even(pair), data()).model)[0]
        changed = [old != new for old, new in zip(dense, found)]
        assert changed == [i == position for i in range(3)]
        collected = even(pair).collectors()
        assert collected == [Grams(attention=pair != "mlp", mlp=pair == "mlp")]


def test_widths_are_rounded_and_heads_keep_their_least(tiny: Any) -> None:
    model = tiny("tiny-llama")
    rounded = sizes(apply(model, even(round_to=8), data()).model)
    assert {inner for inner, _, _ in rounded} == {64}, "67 of 96"
    tight = even(sparsity=0.8, min_head_dim=7)
    assert set(sizes(apply(model, tight, data()).model)) == {(19, 8, 7)}
    huge = even(sparsity=0.5, min_head_dim=50, round_to=200)
    assert set(sizes(apply(model, huge, data()).model)) == {(96, 12, 12)}


def test_it_can_be_done_again_on_its_own_result(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    first = apply(model, method(sparsity=0.25), data()).model
    decided = plan(first, even(sparsity=0.3), data())
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


def test_one_walk_serves_many_settings(tiny: Any, preset: str) -> None:
    anatomy = Anatomy.of(tiny(preset))
    moments = calibrate(anatomy, data(), [Grams()])
    for wanted in (even("mlp"), even("query_key"), method(sparsity=0.1), even("value_output")):
        shared, own = wanted.plan_from(anatomy, moments), wanted.plan(anatomy, data())
        assert shared.edits == own.edits and shared.reasons == own.reasons
        assert shared.tensors.keys() == own.tensors.keys()
        assert all(torch.equal(t, own.tensors[n]) for n, t in shared.tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_stay_as_they_are(tiny: Any, preset: str, dtype: torch.dtype) -> None:
    model = tiny(preset, dtype=dtype)
    applied = apply(model, even(), data())
    assert {p.dtype for p in applied.model.parameters()} == {dtype}
    full = apply(tiny(preset), even(), data()).model
    assert sizes(applied.model) == sizes(full)


def test_plans_are_saved_with_their_reasons(tiny: Any, preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    decided = plan(model, method(), data())
    json.dumps(decided.to_json(), allow_nan=False)
    loaded = Plan.load(decided.save(tmp_path / "plan"))
    assert loaded.reasons == json.loads(json.dumps(decided.reasons))
    ours, theirs = apply_plan(model, decided).model, apply_plan(model, loaded).model
    assert torch.equal(outputs(ours), outputs(theirs))
    assert decided.reasons["calibration"] == data().recipe


@pytest.mark.parametrize("pairs", [PAIRS, *((pair,) for pair in PAIRS)], ids=len)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_forecast_brackets_what_goes(
    tiny: Any, preset: str, pairs: tuple[str, ...], allocation: str
) -> None:
    anatomy = Anatomy.of(tiny(preset))
    moments = calibrate(anatomy, data(), [Grams()])
    for sparsity in (0.02, 0.25, 0.6):
        for round_to in (1, 8):
            options = {"pairs": pairs, "allocation": allocation, "round_to": round_to}
            wanted = method(sparsity=sparsity, **options)
            low, high = wanted.forecast(anatomy)
            applied = apply_plan(anatomy.model, wanted.plan_from(anatomy, moments), check=False)
            gone = anatomy.num_parameters - Anatomy.of(applied.model).num_parameters
            assert low <= gone <= high
    assert method(sparsity=0.0).forecast(anatomy) == (0, 0)


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
    "unknown": ({"ratio": 0.2}, "unknown option of modegpt 'ratio'; legal values: sparsity"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options_are_refused(case: str) -> None:
    options, words = OPTIONS[case]
    with pytest.raises(Refused, match=words) as refusal:
        make_method("modegpt", options)
    assert "\n" not in str(refusal.value)


def test_bad_options_are_refused_in_python_too() -> None:
    for options, words in (
        ({"pairs": ("mlp", "qk")}, "unknown pair 'qk'; legal values: mlp, query_key"),
        ({"allocation": "even"}, "unknown allocation 'even'; legal values: global, uniform"),
        ({"shared_values": "no"}, "unknown shared_values 'no'; legal values: joint, two_step"),
    ):
        with pytest.raises(Refused, match=words):
            MoDeGpt(**options)  # type: ignore[arg-type]


def test_without_data_it_is_refused(tiny: Any) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(Refused, match="modegpt needs calibration data"):
        plan(model, method())
    with pytest.raises(Refused, match="modegpt needs calibration data"):
        method().plan(Anatomy.of(model))
    with pytest.raises(Refused, match="no calibration data"):
        plan(model, method(), TokenWindows((), {"tokens": 0}))


def test_activations_that_are_not_finite_are_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.model.layers[2].self_attn.v_proj.weight.data[0, 0] = math.nan
    with pytest.raises(Refused, match="after block 2 are not finite; check the weights"):
        plan(model, method(), data())


def test_a_quantised_model_is_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.is_quantized = True
    with pytest.raises(Refused, match="open it dequantised"):
        plan(model, method(), data())


def test_titles_name_what_is_narrowed() -> None:
    assert method(sparsity=0.25).title() == "MoDeGPT 25% of MLP, query/key, value/output"
    assert even("mlp").title() == "MoDeGPT 30% of MLP"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
