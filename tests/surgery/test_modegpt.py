"""MoDeGPT on tiny models of every family, against what its decompositions promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from narrow_cases import data, even, method, pairs_of
from torch import Tensor

from helpers import outputs, worst
from modwright.anatomy import Anatomy, Attention, HookPoint
from modwright.calibration import SecondMoments, calibrate
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, Plan, Replace
from modwright.edits import apply as apply_plan
from modwright.surgery import apply, plan


@torch.no_grad()
def tapped(model: Any, hook_point: HookPoint) -> Tensor:
    """What a hook point reads in the model's own forward over the calibration data: (n, d),
    float64.
    """
    seen: list[Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        value = given if hook_point.side == "input" else out[0] if isinstance(out, tuple) else out
        seen.append(value.flatten(0, -2).double())

    handle = hook_point.module.register_forward_hook(hook, with_kwargs=True)
    for batch in data(model):
        model.base_model(**batch.tensors())
    handle.remove()
    return torch.cat(seen)


# Nothing to cut


@pytest.mark.parametrize("given", [False, True])
def test_without_sparsity_nothing_changes(tiny: Any, preset: str, given: bool) -> None:
    model = tiny(preset)
    nothing = method(sparsity=0.0, pairs=pairs_of(model))
    applied = apply(model, nothing, data(model) if given else None)
    assert applied.plain and worst(outputs(applied.model), outputs(model)) <= 1e-5
    assert not method(sparsity=0.0).wants_data()


def test_what_rounds_to_the_whole_is_left_alone(tiny: Any) -> None:
    model = tiny("tiny-llama")
    decided = plan(model, even("mlp", sparsity=0.02, round_to=8), data())
    assert decided.edits == ()
    told = decided.reasons["blocks"][0]
    assert told["intermediate_size"] == model.config.intermediate_size


# Type I


def test_the_error_of_the_mlp_is_the_one_foretold(tiny: Any, dense_mlps: str) -> None:
    model = tiny(dense_mlps, dtype=torch.float64)
    decided = plan(model, even("mlp"), data(model))
    result = apply_plan(model, decided).model
    old, new = Anatomy.of(model).blocks[0].mlp, Anatomy.of(result).blocks[0].mlp
    assert old is not None and new is not None
    keep = int(old.intermediate_size * 0.7)
    assert new.intermediate_size == keep < old.intermediate_size
    # Nothing before the first MLP has changed, so both read the same.
    off = tapped(model, HookPoint(old.down.module, "output"))
    off = off - tapped(result, HookPoint(new.down.module, "output"))
    measured = float(off.square().sum() / len(off))
    assert decided.reasons["blocks"][0]["mlp_error"] == pytest.approx(measured, rel=1e-6)

    a, index = tapped(model, old.inner), kept_rows(old.up.weight, new.up.weight)
    sliced = a @ old.down.weight.T - a[:, index] @ old.down.weight[:, index].T
    assert measured < float(sliced.square().sum() / len(a))


def kept_rows(old: Tensor, new: Tensor) -> list[int]:
    return [int((old == row).all(-1).nonzero()) for row in new]


def test_gate_up_and_biases_keep_the_same_neurons(tiny: Any, dense_mlps: str) -> None:
    model = tiny(dense_mlps)
    result = apply(model, even("mlp"), data(model)).model
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
    tiny: Any, plain_heads: str, sparsity: float
) -> None:
    model, reference = tiny(plain_heads), tiny.copy(plain_heads)
    applied = apply(model, even("query_key", sparsity=sparsity), data(model))
    for index, block in enumerate(Anatomy.of(reference).blocks):
        attention = block.attention
        assert attention is not None
        shape = attention.shape
        keep = int(shape.qk_head_dim * (1 - sparsity))
        keep = max(2, keep - keep % 2 if shape.rotary_dim else keep)
        original = Anatomy.of(model).blocks[index].attention
        assert original is not None
        kept = channels_by_hand(original, tapped(model, original.sublayer_input), keep)
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
            Anatomy.of(model), calibrate(Anatomy.of(model), data(), [SecondMoments()])
        ),
        lambda: plan(model, even("query_key", sparsity=0.0), None),
    ):
        with pytest.raises(
            InvalidInputError, match=r"blocks\.1\.attention normalizes its queries.*leave"
        ):
            asked()
    assert apply(model, method(pairs=("mlp", "value_output")), data()).verification.ok


def with_query_norms(model: Any) -> Any:
    """The second attention normalizes queries and keys."""
    anatomy = Anatomy.of(model)
    attention = anatomy.blocks[1].attention
    shape = {**attention.shape.to_dict(), "qk_norm_eps": 1e-6}
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
        model, even("value_output", sparsity=0.5 / width, shared_values=shared_values), data(model)
    )
    for block in Anatomy.of(applied.model).blocks:
        assert block.attention is not None
        assert block.attention.shape.v_head_dim == width - 1
        assert block.attention.shape.qk_head_dim == width
        assert block.attention.v.bias is None
    assert worst(outputs(applied.model), outputs(model)) <= 1e-5


def test_the_error_of_values_is_the_discarded_spectrum(tiny: Any, preset: str) -> None:
    model = tiny(preset, dtype=torch.float64)
    decided = plan(model, even("value_output", ridge_vo=1e-9), data(model))
    new = Anatomy.of(apply_plan(model, decided).model).blocks[0].attention
    old = Anatomy.of(model).blocks[0].attention
    assert old is not None and new is not None
    assert new.shape.v_head_dim == int(old.shape.v_head_dim * 0.7)
    x, measured = tapped(model, old.sublayer_input), 0.0
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
            for told in plan(model, even("value_output", shared_values=how), data(model)).reasons[
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
