"""Every family and every kind of edit: the edited model is the dense one without what was cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edit_cases import CASES, KINDS, drop_neurons

from helpers import batch_of, edit, outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy
from modwright.edits import Applied, Change, keep_neurons, remove, verify
from modwright.edits.remodeled import is_remodeled


def apply_case(model: Any, case: str, check: bool = True) -> Applied:
    return edit(model, CASES[case].change(Anatomy.of(model)), check=check)


on_kinds = pytest.mark.covering(lambda params: params["case"] in KINDS)


@on_kinds
@pytest.mark.contract("B5")
@pytest.mark.parametrize("case", CASES)
def test_an_edit_equals_the_dense_model_without_what_it_cuts(
    tiny: Any, edited: Any, preset: str, case: str
) -> None:
    found = edited(preset, case)
    applied, batch = found.applied, batch_of(found.source)
    assert applied.verification is not None and applied.verification.ok
    reference = tiny.copy(preset)
    CASES[case].zero(Anatomy.of(reference))
    result = outputs(applied.model, batch)
    assert worst(result, outputs(reference, batch)) <= 1e-5
    if case not in ("identity", "same-attention"):
        assert worst(result, found.dense) > 1e-3, "the case cuts nothing that matters"

    assert found.source_unchanged
    assert torch.equal(outputs(found.source, batch), found.dense)
    assert not applied.model.training


@on_kinds
@pytest.mark.contract("H5")
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_accounted_for(edited: Any, preset: str, case: str) -> None:
    source, applied = edited(preset, case).source, edited(preset, case).applied
    old = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    new = {**dict(applied.model.named_parameters()), **dict(applied.model.named_buffers())}
    books = applied.tensor_diff
    listed = [*books.kept, *books.changed, *books.added]
    assert sorted(listed) == sorted(new)
    assert len(books.kept) + len(books.changed) + len(books.removed) == len(old)
    assert set(books.removed) <= set(old)
    owned = {id(t) for t in old.values()}
    assert {n for n, t in new.items() if id(t) in owned} == set(books.kept)
    written = set(CASES[case].change(Anatomy.of(source)).tensors)
    assert len(books.changed) <= len(written)


@on_kinds
@pytest.mark.contract("C1")
@pytest.mark.parametrize("case", ["identity", "same-attention", *KINDS])
def test_bytes_never_grow_and_ties_and_dtype_stay(edited: Any, preset: str, case: str) -> None:
    found = edited(preset, case, dtype=torch.bfloat16)
    source, applied = found.source, found.applied
    before, after = Anatomy.of(source), Anatomy.of(applied.model)
    assert after.is_tied == before.is_tied
    assert {p.dtype for p in applied.model.parameters()} == {torch.bfloat16}
    assert applied.model.config.dtype == source.config.dtype
    cuts = case not in ("identity", "same-attention")
    assert (after.num_bytes < before.num_bytes) == cuts
    assert after.num_bytes <= before.num_bytes
    assert applied.verification is not None and applied.verification.ok


@on_kinds
@pytest.mark.parametrize("case", CASES)
def test_plain_results_are_stock_models(edited: Any, preset: str, case: str) -> None:
    source, applied = edited(preset, case).source, edited(preset, case).applied
    if CASES[case].plain is not None:
        assert applied.plain == CASES[case].plain
    assert is_remodeled(applied.model) != applied.plain
    assert isinstance(applied.model, type(source))
    assert (type(applied.model) is type(source)) == applied.plain
    assert hasattr(applied.model.config, "edits") != applied.plain


@pytest.mark.parametrize("case", KINDS)
def test_attention_implementations_agree(edited: Any, preset: str, case: str) -> None:
    model = edited(preset, case).copy()
    results = []
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert verify(model).ok
        results.append(outputs(model))
    assert worst(*results) <= 1e-5


def test_an_edited_model_keeps_the_attention_implementation(tiny: Any, preset: str) -> None:
    source = tiny.copy(preset)
    for name in ("eager", "sdpa"):
        source.set_attn_implementation(name)
        for case in ("uneven-heads", "half-ffn-everywhere"):
            config = apply_case(source, case, check=False).model.config
            assert config._attn_implementation == name


@pytest.mark.parametrize("case", ["several", "no-attention-0", "uneven-heads", "low-rank-down"])
def test_an_edited_model_is_edited_again(tiny: Any, edited: Any, preset: str, case: str) -> None:
    once = edited(preset, case).model
    before = snapshot(once)
    anatomy = Anatomy.of(once)
    change = keep_neurons(anatomy.blocks[0].mlp, range(8)) + remove(anatomy.blocks[3])
    twice = edit(once, change)
    assert unchanged(once, before)
    reference = Anatomy.of(tiny.copy(preset))
    CASES[case].zero(reference)
    drop_neurons(reference.blocks[0].mlp, list(range(8)))
    at_once = edit(reference.model, remove(reference.blocks[3]), check=False)
    assert worst(outputs(twice.model), outputs(at_once.model)) <= 1e-5


def test_the_same_edits_in_two_steps_and_in_one_are_one_model(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    a = Anatomy.of(source)
    first, second = remove(a.blocks[0].attention), keep_neurons(a.blocks[1].mlp, range(9))
    together = edit(source, first + second, check=False).model
    apart = edit(edit(source, first, check=False).model, second, check=False).model
    assert together.config.edits == apart.config.edits
    assert torch.equal(outputs(together), outputs(apart))


def test_giving_a_part_back_its_width_makes_the_model_plain_again(
    tiny: Any, dense_mlps: str
) -> None:
    from modwright.edits import replace_mlp

    source = tiny(dense_mlps)
    a = Anatomy.of(source)
    narrow = edit(source, keep_neurons(a.blocks[1].mlp, range(9)), check=False)
    old = a.blocks[1].mlp
    back = replace_mlp(
        Anatomy.of(narrow.model).blocks[1].mlp,
        up=old.up.weight,
        down=old.down.weight,
        gate=None if old.gate is None else old.gate.weight,
        up_bias=old.up.bias,
        gate_bias=None if old.gate is None else old.gate.bias,
    )
    again = edit(narrow.model, back)
    assert not narrow.plain and again.plain
    assert torch.equal(outputs(again.model), outputs(source))


def test_training_mode_and_frozen_parameters_stay(tiny: Any, preset: str) -> None:
    source = tiny.copy(preset).train()
    for parameter in source.parameters():
        parameter.requires_grad_(False)
    model = apply_case(source, "several").model
    assert model.training and source.training
    assert all(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("head", ["AutoModel", "classifier"])
def test_other_heads_are_edited_alike(tiny: Any, preset: str, head: str) -> None:
    auto = tiny.classifier(preset) if head == "classifier" else head
    source = tiny(preset, auto=auto, pad_token_id=0)
    applied = apply_case(source, "several")
    reference = tiny.copy(preset, auto=auto, pad_token_id=0)
    CASES["several"].zero(Anatomy.of(reference))
    assert worst(outputs(applied.model), outputs(reference)) <= 1e-5


# Blocks


@pytest.mark.contract("D1")
@pytest.mark.parametrize("gone", [(0,), (2,), (3,), (0, 2), (1, 2, 3)])
def test_removed_blocks_are_those_of_a_shorter_stack(
    tiny: Any, preset: str, gone: tuple[int, ...]
) -> None:
    source = tiny(preset)
    a = Anatomy.of(source)
    applied = edit(source, sum((remove(a.blocks[i]) for i in gone), Change()))
    assert applied.plain
    assert len(Anatomy.of(applied.model).blocks) == 4 - len(gone)

    by_hand = tiny.copy(preset)
    family = Anatomy.of(by_hand).family
    stack = by_hand.get_submodule(family.blocks_path(by_hand))
    left = [stack[i] for i in range(4) if i not in gone]
    path, _, name = family.blocks_path(by_hand).rpartition(".")
    setattr(by_hand.get_submodule(path), name, torch.nn.ModuleList(left))
    setattr(by_hand.config, family.field("num_layers"), len(left))
    types = getattr(by_hand.config, "layer_types", None)
    if types is not None:
        by_hand.config.__dict__["layer_types"] = [types[i] for i in range(4) if i not in gone]
    batch = batch_of(source)
    if a.family.is_causal():
        batch["use_cache"] = False
    assert torch.equal(outputs(applied.model, batch), outputs(by_hand, batch))


@pytest.mark.contract("B8")
def test_a_block_keeps_its_scale_wherever_it_stands(tiny: Any) -> None:
    """GPT-2 can divide scores by the layer's number; the block that moves keeps its old one."""
    source = tiny("tiny-gpt2", scale_attn_by_inverse_layer_idx=True)
    a = Anatomy.of(source)
    applied = edit(source, remove(a.blocks[0]) + remove(a.blocks[2]))
    scales = [block.attention.shape.scaling for block in Anatomy.of(applied.model).blocks]
    assert scales == [a.blocks[1].attention.shape.scaling, a.blocks[3].attention.shape.scaling]
    reference = tiny.copy("tiny-gpt2", scale_attn_by_inverse_layer_idx=True)
    for index in (0, 2):
        for part in (
            Anatomy.of(reference).blocks[index].attention.o,
            Anatomy.of(reference).blocks[index].mlp.down,
        ):
            for name, tensor in part.parameters().items():
                part.write(name, torch.zeros_like(tensor))
    assert worst(outputs(applied.model), outputs(reference)) <= 1e-5


# Post-norm blocks


@pytest.mark.parametrize("role", ["attention", "mlp"])
def test_a_post_norm_block_may_lose_its_norm_too(tiny: Any, role: str) -> None:
    """Without ``drop_norm`` the block computes norm(h); with it, h."""
    source = tiny("tiny-bert")
    block = Anatomy.of(source).blocks[1]
    part = getattr(block, role)
    kept, dropped = edit(source, remove(part)), edit(source, remove(part, drop_norm=True))
    reference = tiny.copy("tiny-bert")
    layer = reference.encoder.layer[1]
    if role == "attention":
        layer.attention.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)
    else:
        layer.feed_forward_chunk = lambda attention_output: attention_output
    assert worst(outputs(dropped.model), outputs(reference)) <= 1e-5
    assert worst(outputs(kept.model), outputs(dropped.model)) > 1e-3
    norm = f"{role}_norm"
    assert norm in Anatomy.of(kept.model).blocks[1].norms
    assert norm not in Anatomy.of(dropped.model).blocks[1].norms
