"""Plans: they survive being saved, and apply does all of a plan or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_cases import CASES, KINDS, attention_of, mlp_of

from helpers import edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    ModwrightError,
    VerificationError,
)
from modwright.edits import (
    Change,
    Plan,
    Remove,
    Replace,
    apply,
    keep_heads,
    keep_neurons,
    remove,
    replace_attention,
)
from modwright.edits.plan import structure_of


def planned(model: Any, change: Change) -> Plan:
    return Plan.of(Anatomy.of(model), "test", change)


def refused(model: Any, change: Change, said: str) -> None:
    """The change is refused in one line, and the model is as it was."""
    before = snapshot(model)
    with pytest.raises(InvalidInputError, match=said) as refusal:
        apply(model, planned(model, change))
    assert "\n" not in str(refusal.value)
    assert unchanged(model, before)


# Saving


@pytest.mark.parametrize("case", KINDS)
def test_a_saved_plan_gives_the_same_model(
    tiny: Any, preset: str, case: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    anatomy = Anatomy.of(source)
    plan = Plan.of(
        anatomy,
        "by hand",
        CASES[case].change(anatomy),
        options={"ratio": 0.5},
        reasons={"scores": [1.0, 2.0]},
        notes=("one note",),
    )
    back = Plan.load(plan.save(tmp_path / "plan"))
    assert back.to_dict() == json.loads(json.dumps(plan.to_dict()))
    assert back.edits == plan.edits
    assert back.structure == plan.structure == structure_of(anatomy)
    assert (back.method, back.options, back.notes) == ("by hand", {"ratio": 0.5}, ("one note",))
    assert {n: t.shape for n, t in back.tensors.items()} == {
        n: t.shape for n, t in plan.tensors.items()
    }
    assert {path.suffix for path in (tmp_path / "plan").iterdir()} == {".json", ".safetensors"}
    ours, theirs = apply(source, plan, check=False), apply(source, back, check=False)
    assert torch.equal(outputs(ours.model), outputs(theirs.model))
    assert ours.tensor_diff == theirs.tensor_diff
    assert len(back.summary()) == len(plan.edits)


@pytest.mark.contract("A11")
def test_a_plan_can_be_read_by_people(tiny: Any) -> None:
    source = tiny("tiny-llama")
    a = Anatomy.of(source)
    change = remove(a.blocks[0].attention) + CASES["low-rank-down"].change(a)
    change += keep_heads(attention_of(a, 2), [0, 1, 3]) + keep_neurons(mlp_of(a, 3), range(8))
    plan = planned(source, change)
    assert repr(plan) == "Plan(test: 6 edits, 10 new tensors)"
    assert dict(plan.summary()) == {
        "blocks.0.attention": "removed",
        "blocks.1.mlp.down": "factors 96 -> 48 through rank 8",
        "blocks.2.attention": "3 heads, 2 kv, qk 12, v 12",
        "blocks.3.mlp.gate": "linear 48 -> 8",
        "blocks.3.mlp.up": "linear 48 -> 8",
        "blocks.3.mlp.down": "linear 8 -> 48",
    }


def test_plans_are_not_written_over_and_bad_ones_not_read(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    plan = planned(source, remove(Anatomy.of(source).blocks[0].mlp))
    plan.save(tmp_path)
    with pytest.raises(CheckpointError, match="is not empty"):
        plan.save(tmp_path)
    with pytest.raises(CheckpointError, match="holds no readable plan"):
        Plan.load(tmp_path / "elsewhere")
    stored = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**stored, "format": 9}))
    with pytest.raises(CheckpointError, match="format 9; known up to 2"):
        Plan.load(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no readable plan"):
        Plan.load(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no readable plan"):
        Plan.load(tmp_path)


# Plans for another model


def test_a_plan_for_another_structure_is_refused(tiny: Any) -> None:
    source = tiny("tiny-llama")
    plan = planned(source, remove(Anatomy.of(source).blocks[0].mlp))
    others = {
        "made for family llama, the model has gpt2": tiny("tiny-gpt2"),
        "made for hidden_size 48, the model has 24": tiny("tiny-llama", hidden_size=24),
        "made for 4 blocks, the model has 3": tiny("tiny-llama", num_hidden_layers=3),
        "does not fit: block 0 is .*'num_kv_heads': 3": tiny("tiny-llama", num_key_value_heads=3),
        "does not fit: block 0 is .*'mlp': 80": tiny("tiny-llama", intermediate_size=80),
        "does not fit: block 0 is .*'mlp': None": apply(source, plan).model,
    }
    for said, model in others.items():
        with pytest.raises(InvalidInputError, match=said):
            apply(model, plan)


def test_a_plan_fits_any_model_of_its_structure(tiny: Any) -> None:
    source = tiny("tiny-llama")
    plan = planned(source, remove(Anatomy.of(source).blocks[0].mlp))
    assert apply(tiny("tiny-llama", vocab_size=64), plan).verification.ok
    assert apply(tiny("tiny-llama", dtype=torch.bfloat16), plan).verification.ok


# Values


def test_values_that_are_no_numbers_are_refused(tiny: Any, dense_mlps: str) -> None:
    source = tiny(dense_mlps)
    for bad in (torch.nan, torch.inf, -torch.inf):
        change = keep_neurons(mlp_of(Anatomy.of(source), 1), range(9))
        broken = dict(change.tensors)
        name = "blocks.1.mlp.down.weight"
        broken[name] = broken[name].clone()
        broken[name][0, 0] = bad
        refused(source, Change(change.edits, broken), f"NaN or infinite values at {name}")


def test_values_that_are_missing_or_too_many_are_refused(tiny: Any, dense_mlps: str) -> None:
    source = tiny(dense_mlps)
    a = Anatomy.of(source)
    change = keep_neurons(mlp_of(a, 1), range(9))
    fewer = {n: t for n, t in change.tensors.items() if n != "blocks.1.mlp.up.weight"}
    refused(
        source, Change(change.edits, fewer), r"gives no value for blocks\.1\.mlp\.up\.weight \(9,"
    )
    more = {**change.tensors, "blocks.1.mlp.middle.weight": torch.zeros(1)}
    refused(
        source, Change(change.edits, more), r"value for blocks\.1\.mlp\.middle\.weight, which is"
    )
    gone = {"blocks.2.mlp.up.weight": torch.zeros(3)}
    refused(
        source, Change(remove(mlp_of(a, 2)).edits, gone), r"blocks\.2\.mlp\.up\.weight, which is"
    )
    wrong = {**change.tensors, "blocks.1.mlp.up.weight": torch.zeros(8, 48)}
    refused(
        source, Change(change.edits, wrong), r"blocks\.1\.mlp\.up\.weight: shape \(8, 48\) where"
    )


def test_a_value_for_a_removed_block_is_refused(tiny: Any, dense_mlps: str) -> None:
    source = tiny(dense_mlps)
    change = Change(
        (Remove("blocks.1"),), {"blocks.1.mlp.up.weight": mlp_of(Anatomy.of(source), 1).up.weight}
    )
    refused(source, change, r"value for blocks\.1\.mlp\.up\.weight, which is")


def test_values_without_edits_are_written_too(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    before = snapshot(source)
    old = Anatomy.of(source)
    values = {
        "blocks.1.attention_norm.weight": torch.full((48,), 0.5),
        "blocks.2.attention.q.weight": torch.zeros_like(attention_of(old, 2).q.weight),
        "embed.weight": old.outer["embed"].parameters()["weight"] * 0.5,
    }
    applied = edit(source, Change((), values))
    assert applied.plain
    assert unchanged(source, before)
    new = Anatomy.of(applied.model)
    assert new.is_tied == old.is_tied
    assert not attention_of(new, 2).q.weight.any()
    assert torch.equal(attention_of(new, 2).k.weight, attention_of(old, 2).k.weight)
    assert torch.equal(new.outer["embed"].parameters()["weight"], values["embed.weight"])
    assert len(applied.tensor_diff.changed) <= 4
    assert len(applied.tensor_diff.changed) >= 3


def test_one_end_of_a_tie_is_not_written(tiny: Any) -> None:
    change = Change((), {"head.weight": torch.zeros(128, 48)})
    refused(tiny("tiny-llama"), change, "head.weight is tied to embed.weight; write embed.weight")
    untied = edit(tiny("tiny-llama", tie_word_embeddings=False), change).model
    assert not Anatomy.of(untied).outer["head"].parameters()["weight"].any()
    assert Anatomy.of(untied).outer["embed"].parameters()["weight"].any()


@pytest.mark.contract("I2")
def test_new_values_take_dtype_and_device_of_the_part(tiny: Any) -> None:
    source = tiny("tiny-llama", dtype=torch.bfloat16)
    a = Anatomy.of(source)
    change = keep_heads(attention_of(a, 1), [0, 3, 4]) + keep_neurons(mlp_of(a, 1), range(9))
    wide = {n: t.double() if t.is_floating_point() else t.int() for n, t in change.tensors.items()}
    model = edit(source, Change(change.edits, wide)).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.layers[1].self_attn.kv_index.dtype == torch.int64


# Edits that do not go together


def test_nothing_is_edited_twice(tiny: Any, dense_mlps: str) -> None:
    source = tiny(dense_mlps)
    a = Anatomy.of(source)
    twice = remove(a.blocks[1].attention) + remove(a.blocks[1].attention)
    refused(source, twice, r"blocks\.1\.attention is edited twice in one plan")
    inside = remove(a.blocks[1]) + keep_neurons(mlp_of(a, 1), range(9))
    refused(source, inside, r"blocks\.1\.mlp\.\w+ is edited in a plan that removes blocks\.1$")
    for edits in (
        (Remove("blocks.1.mlp"), Replace("blocks.1.mlp.up", "identity")),
        (Replace("blocks.1.mlp.up", "identity"), Remove("blocks.1.mlp")),
        (Remove("blocks.1"), Remove("blocks.1.attention")),
    ):
        refused(source, Change(edits), "is edited in a plan that removes")
    ten = remove(a.blocks[1].mlp) + Change((Remove("blocks.10.mlp"),))
    refused(source, ten, "no block 10; the model has blocks 0 to 3")


def test_an_outer_edit_goes_before_an_inner_one_in_any_order(tiny: Any) -> None:
    source = tiny("tiny-llama")
    attention = attention_of(Anatomy.of(source), 1)
    outer = keep_heads(attention, [0, 1, 3])
    kwargs = {"in_features": 36, "out_features": 48, "rank": 5, "bias": False}
    inner = Replace("blocks.1.attention.o", "factors", kwargs)
    tensors = {
        **outer.tensors,
        "blocks.1.attention.o.weight": torch.randn(48, 5),
        "blocks.1.attention.o.reduce": torch.randn(5, 36),
    }
    models = [
        edit(source, Change(edits, tensors)).model
        for edits in ((*outer.edits, inner), (inner, *outer.edits))
    ]
    assert models[0].config.edits == models[1].config.edits
    assert len(models[0].config.edits) == 2
    assert torch.equal(outputs(models[0]), outputs(models[1]))


def test_what_is_gone_is_not_edited_again(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    once = edit(source, remove(Anatomy.of(source).blocks[1].attention)).model
    again = Change((Remove("blocks.1.attention"),))
    refused(once, again, r"the attention of block 1 was removed already")
    inside = Change((Replace("blocks.1.attention.o", "identity"),))
    refused(once, inside, r"the attention of block 1 was removed, so it cannot be edited")


def test_the_last_block_stays(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    everything = sum((remove(block) for block in Anatomy.of(source).blocks), Change())
    refused(source, everything, "all blocks would go; at least one must stay")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Remove("blocks.4"), "no block 4; the model has blocks 0 to 3"),
        (
            Remove("blocks.1.middle"),
            "unknown part of a block 'middle'; valid values: attention, mlp",
        ),
        (
            Remove("blocks.1.attention_norm"),
            "unknown part of a block 'attention_norm'",
        ),
        (Remove("blocks.1.attention.q"), "only attention, mlp and whole blocks can be removed"),
        (Replace("blocks.1.mlp.middle", "identity"), "have no 'mlp.middle'; they have .*mlp.up"),
        (Replace("blocks.1.mlp.up", "os.system"), "unknown part 'os.system'; valid values: absent"),
        (Replace("blocks.1.mlp.up", "linear", {"rows": 1}), "part 'linear': .*'rows'"),
    ],
)
def test_edits_of_what_is_not_there_are_refused(
    tiny: Any, dense_mlps: str, bad: Remove | Replace, said: str
) -> None:
    refused(tiny(dense_mlps), Change((bad,)), said)


def test_a_structure_that_does_not_run_is_a_failed_verification(tiny: Any, dense_mlps: str) -> None:
    source = tiny(dense_mlps)
    kwargs = {"in_features": 48, "out_features": 40, "bias": False}
    values = {"blocks.1.mlp.up.weight": torch.zeros(40, 48)}
    with pytest.raises(VerificationError, match="after test: it does not run: "):
        edit(source, Change((Replace("blocks.1.mlp.up", "linear", kwargs),), values))


# Models that are not ready


@pytest.mark.contract("I1")
def test_models_that_are_not_on_one_device_are_refused(tiny: Any) -> None:
    source = tiny.copy("tiny-llama")
    plan = planned(source, Change())
    source.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    with pytest.raises(InvalidInputError, match="spread over devices"):
        apply(source, plan)
    del source.hf_device_map
    with pytest.raises(
        InvalidInputError, match=r"model\.embed_tokens\.weight is on the meta device"
    ):
        apply(source.to("meta"), plan)


@pytest.mark.parametrize("where", ["blocks.2.mlp.up.weight", "embed.weight"])
def test_a_source_that_holds_nan_is_refused_by_name(tiny: Any, dense_mlps: str, where: str) -> None:
    source = tiny.copy(dense_mlps)
    anatomy = Anatomy.of(source)
    part = anatomy.outer["embed"] if where == "embed.weight" else anatomy.blocks[2].mlp.up
    value = part.parameters()["weight"].clone()
    value[0, 0] = torch.nan
    anatomy.write(where, value)
    with pytest.raises(InvalidInputError, match="the source weights hold NaN at"):
        apply(source, planned(source, remove(anatomy.blocks[0])))


@pytest.mark.contract("A7")
def test_a_failed_apply_leaves_no_trace(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    before, out = snapshot(source), outputs(source)
    config = json.dumps(source.config.to_dict(), default=str, sort_keys=True)
    plan = planned(source, replace_attention(attention_of(Anatomy.of(source), 1)))
    # Whatever the queries are told to be, this one cannot be written at the end of the plan.
    late = replace(plan, tensors={**plan.tensors, "blocks.3.nothing.weight": torch.zeros(1)})
    with pytest.raises(ModwrightError):
        apply(source, late)
    assert unchanged(source, before)
    assert torch.equal(outputs(source), out)
    assert json.dumps(source.config.to_dict(), default=str, sort_keys=True) == config
    slots = [b.attention.module for b in Anatomy.of(source).blocks]
    assert [getattr(m, "layer_idx", i) for i, m in enumerate(slots)] == [0, 1, 2, 3]
