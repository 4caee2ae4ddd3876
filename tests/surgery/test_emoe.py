"""EMoE on every family: the dense model is in it, comes back exactly, and meets other edits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_cases import SMALL, close, experts_of, merge, split, windows
from torch.nn import functional as F

from covering import LAYOUT_CLASSES
from helpers import batch_of, edit, outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.cost import count
from modwright.edits import arrange, factorize, keep_neurons, verify
from modwright.edits.remodeled import edits_of
from modwright.surgery import apply, make_method, plan, unsupported_reason
from modwright.surgery.clustering import inertia

on_layout_classes = pytest.mark.families(*LAYOUT_CLASSES)


def has_mlps(model: Any) -> bool:
    return unsupported_reason(make_method("emoe", SMALL), Anatomy.of(model)) is None


def reopened(model: Any, place: Path, tiny: Any, preset: str) -> Any:
    import transformers

    model.save_pretrained(place)
    return getattr(transformers, tiny.auto_class(preset)).from_pretrained(place)


# The dense model is in it


@pytest.mark.parametrize("mode", ["mask", "dispatch"])
def test_with_all_experts_it_is_the_dense_model(tiny: Any, preset: str, mode: str) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    whole = split(model, top_k=8, layers="all", mode=mode).model
    assert len(experts_of(whole)) == 4
    assert close(outputs(whole), outputs(model))


@pytest.mark.parametrize("options", [{}, {"layers": "all", "cluster": "random"}])
def test_merging_gives_the_dense_model_back_bit_for_bit(
    tiny: Any, preset: str, options: dict[str, Any]
) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    before = snapshot(model)
    parted = split(model, **options)
    assert not parted.plain
    assert worst(outputs(parted.model), outputs(model)) > 1e-4
    back = merge(parted.model)
    assert back.plain and type(back.model) is type(model)
    assert back.model.config.to_dict() == model.config.to_dict()
    assert list(back.model.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    assert unchanged(model, before)


def test_merging_may_leave_neurons_in_groups(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    grouped = merge(split(model).model, restore_order=False)
    assert grouped.plain
    assert close(outputs(grouped.model), outputs(model))
    ours, theirs = (Anatomy.of(m).blocks[2].mlp.up.weight for m in (grouped.model, model))
    assert not torch.equal(ours, theirs)
    assert torch.equal(ours.sort(0).values, theirs.sort(0).values)


def test_neurons_are_grouped_by_their_keys(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    decided = plan(model, make_method("emoe", SMALL))
    mlp = Anatomy.of(model).blocks[2].mlp
    told = decided.reasons["layers"][mlp.address]
    keys = F.normalize((mlp.gate or mlp.up).weight, dim=1)
    order = decided.tensors[f"{mlp.address}.order"]
    assert sorted(order.tolist()) == list(range(mlp.intermediate_size))
    groups = torch.arange(mlp.intermediate_size) // (mlp.intermediate_size // 8)
    assert told["inertia"] == pytest.approx(inertia(keys[order], groups), rel=1e-3)
    assert told["in_order"] == pytest.approx(inertia(keys, groups), rel=1e-3)
    assert told["inertia"] < told["in_order"]
    # Inside a group neurons keep their order.
    assert all(torch.equal(g, g.sort().values) for g in order.view(8, -1))


@on_layout_classes
def test_masked_and_dispatched_models_agree(tiny: Any, preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    for score in ("gate", "avg_key", "inter_abs"):
        given = {"layers": "all", "score": score}
        masked, sparse = split(model, **given).model, split(model, mode="dispatch", **given).model
        assert close(outputs(masked), outputs(sparse))
        assert verify(sparse).ok
    back = reopened(sparse, tmp_path / "sparse", tiny, preset)
    assert all(
        torch.equal(a, b) for a, b in zip(snapshot(back).values(), snapshot(sparse).values())
    )
    # A product with a single row is rounded as its memory lies, so this is not bit for bit.
    assert close(outputs(back), outputs(sparse), 1e-6)


@on_layout_classes
def test_generation_with_cache_is_generation_without(tiny: Any, decoder: str) -> None:
    model = tiny(decoder)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    for mode in ("mask", "dispatch"):
        parted = split(model, mode=mode, layers="all").model
        ids = batch_of(parted)["input_ids"][:1]
        given: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        cached, uncached = (parted.generate(ids, use_cache=use, **given) for use in (True, False))
        assert torch.equal(cached, uncached)


# Cost


def test_no_parameter_is_new_and_dispatch_multiplies_less(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    dense = count(model, length=10)
    found = {}
    for mode in ("mask", "dispatch"):
        parted = split(model, mode=mode, score="avg_key", layers=[1]).model
        found[mode] = counted = count(parted, length=10)
        assert counted.parameters == dense.parameters
    (mlp,) = experts_of(parted)
    old = next(row for row in dense.rows if row.address == mlp.address)
    rows = {
        mode: next(row for row in counted.rows if row.address == mlp.address)
        for mode, counted in found.items()
    }
    positions = Anatomy.of(model).family.inputs().positions(10)
    keys = 8 * mlp.hidden_size * positions
    assert rows["mask"].prefill_macs == old.prefill_macs + keys
    assert rows["dispatch"].prefill_macs == old.prefill_macs * 2 // 8 + keys
    # Stored beside the weights: where each neuron was, and the mean keys.
    assert rows["mask"].bytes - old.bytes == 8 * mlp.intermediate_size + 4 * 8 * mlp.hidden_size


# Other edits


@on_layout_classes
@pytest.mark.parametrize("part", ["attention[1]", "mlp[2]", "block[0]"])
@pytest.mark.parametrize("swapped", [False, True], ids=["drop first", "split first"])
def test_it_composes_with_dropping_in_both_orders(
    tiny: Any, preset: str, part: str, swapped: bool, tmp_path: Path
) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    steps = [("drop", {"parts": part}), ("emoe", SMALL)]
    for name, options in reversed(steps) if swapped else steps:
        applied = apply(model, make_method(name, options))
        assert applied.verification is not None and applied.verification.ok
        model = applied.model
    back = reopened(model, tmp_path / "saved", tiny, preset)
    assert torch.equal(outputs(back), outputs(model))
    expected = {
        # What is split: the last even layers that have an MLP; a block that goes moves the others.
        ("attention[1]", False): [0, 2],
        ("attention[1]", True): [0, 2],
        ("mlp[2]", False): [0],
        ("mlp[2]", True): [0],
        ("block[0]", False): [0, 2],
        ("block[0]", True): [1],
    }[part, swapped]
    assert [m.address for m in experts_of(back)] == [f"blocks.{i}.mlp" for i in expected]
    assert len(Anatomy.of(back).blocks) == (3 if "block" in part else 4)
    dropped = apply(tiny(preset), make_method("drop", {"parts": part})).model
    merged = merge(back).model
    assert edits_of(merged.config) == edits_of(dropped.config)
    assert torch.equal(outputs(merged), outputs(dropped))


@pytest.mark.parametrize("swapped", [False, True], ids=["drop first", "split first"])
def test_scores_of_redundancy_see_the_experts_at_work(tiny: Any, swapped: bool) -> None:
    drop, parting = make_method("llm_drop", {"n": 1, "target": "mlp"}), make_method("emoe", SMALL)
    model = tiny("tiny-bert")
    scores = []
    for method in (parting, drop) if swapped else (drop, parting):
        if method is drop:
            decided = plan(model, drop, windows())
            scores = decided.reasons["scores"]["mlp"]
            assert apply(model, decided).verification is not None
        model = apply(model, method, windows()).model
    dense = plan(tiny("tiny-bert"), drop, windows()).reasons["scores"]["mlp"]
    assert (scores == dense) is not swapped


@on_layout_classes
def test_narrowing_comes_before_splitting(tiny: Any, decoder: str, tmp_path: Path) -> None:
    model = tiny(decoder)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    narrow = make_method("modegpt", {"sparsity": 0.25, "pairs": ["mlp"], "round_to": 8})
    narrowed = apply(model, narrow, windows()).model
    parted = split(narrowed, layers="all")
    back = reopened(parted.model, tmp_path / "saved", tiny, decoder)
    assert torch.equal(outputs(back), outputs(parted.model))
    assert [m.intermediate_size for m in experts_of(back)] == [
        block.mlp.intermediate_size for block in Anatomy.of(narrowed).blocks
    ]
    merged = merge(back)
    assert edits_of(merged.model.config) == edits_of(narrowed.config)
    assert list(merged.model.state_dict()) == list(narrowed.state_dict())
    for name, value in narrowed.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], value), name

    said = "modegpt: blocks.0.mlp is split into 8 experts; merge them first, or leave mlp out"
    assert (unsupported_reason(narrow, Anatomy.of(back)) or "").startswith(said)
    with pytest.raises(InvalidInputError, match=said):
        plan(back, narrow, windows())


def test_blocks_with_experts_are_copied_and_moved(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    if not has_mlps(model):
        pytest.skip("this family has experts of its own: refused, see test_contract")
    parted = split(model, layers=[1]).model
    moved = edit(parted, arrange((1, 0, 1, 2, 3))).model
    first, second = experts_of(moved)
    assert (first.address, second.address) == ("blocks.0.mlp", "blocks.2.mlp")
    for name, buffer in first.buffers().items():
        assert torch.equal(buffer, second.buffers()[name])
        assert buffer.data_ptr() != second.buffers()[name].data_ptr()
    back = merge(moved).model
    expected = edit(model, arrange((1, 0, 1, 2, 3))).model
    assert torch.equal(outputs(back), outputs(expected))


def test_what_takes_a_map_apart_is_refused(tiny: Any) -> None:
    parted = split(tiny("tiny-llama")).model
    mlp = experts_of(parted)[0]
    with pytest.raises(
        InvalidInputError, match=r"blocks.0.mlp is split into 8 experts; merge them first"
    ):
        keep_neurons(mlp, range(5))
    u, s, vh = torch.linalg.svd(mlp.down.weight, full_matrices=False)
    with pytest.raises(
        InvalidInputError, match=r"mlp.down: experts share their maps; merge the experts"
    ):
        edit(parted, factorize(mlp.down, u[:, :4] * s[:4], vh[:4]))
    with pytest.raises(InvalidInputError, match=r"blocks.0.mlp is split into 8 experts already"):
        split(parted)
    factored = edit(tiny("tiny-llama"), factorize(*thin(tiny("tiny-llama")))).model
    with pytest.raises(
        InvalidInputError, match=r"blocks.2.mlp.down is a FactorPair, which does not split"
    ):
        split(factored)


def thin(model: Any) -> tuple[Any, Any, Any]:
    down = Anatomy.of(model).blocks[2].mlp.down
    u, s, vh = torch.linalg.svd(down.weight, full_matrices=False)
    return down, u[:, :4] * s[:4], vh[:4]


# Options


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 2]),
        ("last_even", [0, 2]),
        ("all", [0, 1, 2, 3]),
        ("1:3", [1, 2]),
        ("-1", [3]),
        ([3, 1], [1, 3]),
        ([-4], [0]),
    ],
)
def test_layers_are_chosen(tiny: Any, layers: Any, expected: list[int]) -> None:
    parted = split(tiny("tiny-llama"), layers=layers).model
    assert [m.address for m in experts_of(parted)] == [f"blocks.{i}.mlp" for i in expected]


def test_the_last_even_layers_are_those_that_have_an_mlp(tiny: Any) -> None:
    twelve = tiny("tiny-llama", num_hidden_layers=7)
    parted = split(twelve).model
    assert [m.address for m in experts_of(parted)] == ["blocks.4.mlp", "blocks.6.mlp"]
    dropped = apply(twelve, make_method("drop", {"parts": "mlp[4]"})).model
    parted = split(dropped).model
    assert [m.address for m in experts_of(parted)] == ["blocks.2.mlp", "blocks.6.mlp"]


def test_a_plan_says_what_it_did_and_warns(tiny: Any) -> None:
    model = tiny("tiny-llama")
    method = make_method("emoe", {**SMALL, "layers": [2], "score": "inter", "mode": "dispatch"})
    decided = plan(model, method)
    assert decided.summary() == [("blocks.2.mlp", "8 experts of 12, top 2 by inter, dispatched")]
    assert decided.options["layers"] == [2]
    notes = " ".join(decided.notes)
    assert "needs every neuron" in notes and "merges the experts back" in notes
    stored = plan(model, make_method("emoe", {**SMALL, "top_k": 8, "score": "avg_key"})).notes
    assert len(stored) == 1 and "tie_keys" in stored[0]
    assert method.title() == "split MLPs into 8 experts, top 2 by inter"
    assert method.parameter_bounds(Anatomy.of(model)) == (0, 0) and not method.wants_data()
    work, values = method.memory_estimate(Anatomy.of(model))
    assert work == 12 * 96**2 and values == 4 * 3 * 48 * 96


def test_a_plan_for_a_split_model_does_not_fit_a_dense_one(tiny: Any) -> None:
    model = tiny("tiny-llama")
    parted = split(model).model
    for made_for, other in ((model, parted), (parted, model)):
        decided = plan(made_for, make_method("drop", {"parts": "attention[1]"}))
        with pytest.raises(InvalidInputError, match="does not fit: block 0"):
            apply(other, decided)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "96 neurons do not split into 64 experts of one size; nearest: 48 or 96"),
        ({"num_experts": 100, "top_k": 2}, "nearest: 96"),
        ({"num_experts": 8, "top_k": 9}, "top_k 9 must lie between 1 and 8"),
        ({"num_experts": 8, "top_k": 0}, "top_k 0 must lie between 1 and 8"),
        ({"num_experts": 8, "top_k": 8, "selection": "not_top"}, "must lie between 1 and 7"),
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({**SMALL, "layers": [9]}, "there is no layer 9; there are 0 to 3"),
        ({**SMALL, "layers": [-5]}, "there is no layer -5"),
        ({**SMALL, "layers": [1, -3]}, "names a layer twice"),
        ({**SMALL, "layers": []}, "layers names no layer"),
        ({**SMALL, "layers": "odd"}, "cannot read 'odd'"),
        ({**SMALL, "score": "value"}, "score: .*'gate', 'avg_key'"),
        ({**SMALL, "score": "up", "weigh_keys": True}, "go with score 'avg_key' only"),
        ({**SMALL, "mode": "sparse"}, "mode: .*'mask' or 'dispatch'"),
        ({**SMALL, "cluster": "kmean"}, "cluster: .*'kmeans', 'contiguous' or 'random'"),
        ({**SMALL, "capacity": 0.1}, r"capacity 0.1 must be at least 1"),
        ({"n_experts": 8}, "unknown option of emoe 'n_experts'.*did you mean 'num_experts'"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        plan(tiny("tiny-llama"), make_method("emoe", options))
    assert "\n" not in str(refusal.value)


def test_words_are_checked_in_python_too() -> None:
    from modwright.surgery.emoe import Emoe

    with pytest.raises(
        InvalidInputError, match=r"unknown mode 'sparse'; valid values: mask, dispatch"
    ):
        Emoe(mode="sparse")  # type: ignore[arg-type]
    assert dataclasses.replace(Emoe(), num_experts=8, top_k=1).title().endswith("top 1 by gate")


def test_weights_that_are_not_finite_are_refused(tiny: Any) -> None:
    broken = tiny.copy("tiny-gpt2")
    with torch.no_grad():
        broken.transformer.h[2].mlp.c_fc.weight[3, 3] = float("nan")
    method = make_method("emoe", SMALL)
    said = "emoe: blocks.2.mlp.up.weight holds NaN or infinite values"
    assert unsupported_reason(method, Anatomy.of(broken)) == said
    assert (
        unsupported_reason(dataclasses.replace(method, layers=(0, 1)), Anatomy.of(broken)) is None
    )


def test_an_mlp_that_was_removed_and_an_unknown_activation_are_refused(tiny: Any) -> None:
    dropped = apply(tiny("tiny-llama"), make_method("drop", {"parts": "mlp[1]"})).model
    with pytest.raises(InvalidInputError, match="block 1 has no MLP, it was removed before"):
        split(dropped, layers=[1])
    gone = apply(tiny("tiny-llama"), make_method("drop", {"parts": "mlp[0,2]"})).model
    with pytest.raises(InvalidInputError, match="no MLP stands in an even layer"):
        split(gone)
    odd = tiny.copy("tiny-llama")
    odd.config.hidden_act = "my_act"
    with pytest.raises(InvalidInputError, match="unknown activation 'my_act'"):
        split(odd)


def test_caching_is_checked_with_all_experts_and_routing_stays(tiny: Any) -> None:
    """Near ties turn on rounding: they must not look like a fault of the cache."""
    options = {"num_experts": 8, "top_k": 2, "selection": "bottom", "score": "avg_key"}
    model = apply(tiny("tiny-llama"), make_method("emoe", options), check=False).model
    before = outputs(model)
    found = verify(model)
    assert found.ok and "all experts at work" in str(found)
    assert [p.mlp.experts.top_k for p in Anatomy.of(model).blocks if p.mlp.experts] == [2, 2]
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("layers", [None, "all", (1,)])
def test_a_model_of_experts_is_named_as_one(tiny: Any, layers: Any) -> None:
    method = make_method("emoe", {"num_experts": 8, "top_k": 2, "layers": layers})
    with pytest.raises(InvalidInputError, match=r"emoe: blocks\.\d\.mlp holds experts of its own"):
        plan(tiny("tiny-mixtral"), method)


def test_quantised_models_are_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(InvalidInputError, match="the model is quantized"):
        split(model)


def test_there_must_be_something_to_merge(tiny: Any, preset: str) -> None:
    with pytest.raises(
        InvalidInputError, match="no MLP is split into experts; split some with emoe first"
    ):
        merge(tiny(preset))


def test_a_zero_mean_stream_comes_before_splitting(tiny: Any) -> None:
    model = tiny("tiny-gpt2")
    for options in ({"form": "rms", "fold_affine": True}, {"form": "crms"}):
        centre = make_method("pre_rmsnorm", options)
        centred = apply(model, centre).model
        parted = split(centred, top_k=8, score="avg_key").model
        assert close(outputs(parted), outputs(model))
        assert torch.equal(outputs(merge(parted).model), outputs(centred))
        said = "pre_rmsnorm: blocks.0.mlp consists of experts"
        assert (unsupported_reason(centre, Anatomy.of(split(model).model)) or "").startswith(said)
