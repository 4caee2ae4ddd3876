"""Changes: what they put into a plan, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from edit_cases import attention_of, mlp_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import edit, outputs, worst
from modwright.anatomy import Anatomy, FactoredProjection
from modwright.core.errors import InvalidInputError
from modwright.edits import (
    Change,
    Remove,
    Replace,
    arrange,
    edits_from_list,
    factorize,
    keep_heads,
    keep_neurons,
    part_names,
    register_part,
    remove,
    replace_attention,
    replace_mlp,
)
from modwright.edits.change import checked_index
from modwright.edits.edit import split_address
from modwright.edits.experts import keep_expert_neurons, keep_experts
from modwright.edits.registry import build_part
from modwright.edits.replay import preview


@pytest.fixture
def llama(tiny: Any) -> Anatomy:
    return Anatomy.of(tiny("tiny-llama"))


# Heads


def test_whole_groups_go_with_their_last_head(llama: Anatomy) -> None:
    first_only = edit(llama.model, keep_heads(attention_of(llama, 1), [2, 0])).model
    kept = attention_of(Anatomy.of(first_only), 1)
    old = attention_of(llama, 1)
    assert (kept.num_heads, kept.num_kv_heads) == (2, 1)
    assert torch.equal(kept.read_q(), old.read_q()[[0, 2]])
    assert torch.equal(kept.read_k(), old.read_k()[:1])
    assert torch.equal(kept.read_o(), old.read_o()[[0, 2]])


@pytest.mark.contract("B3")
def test_equal_groups_need_no_map_and_unequal_ones_carry_it(llama: Anatomy) -> None:
    maps = {}
    for heads in ([0, 1, 3, 4], [0, 1, 3], [3, 4, 5], [0, 5]):
        kept = attention_of(
            Anatomy.of(edit(llama.model, keep_heads(attention_of(llama, 1), heads)).model), 1
        )
        maps[tuple(heads)] = kept.shape.kv_map, kept.kv_of_head().tolist()
    assert maps == {
        (0, 1, 3, 4): (False, [0, 0, 1, 1]),
        (0, 1, 3): (True, [0, 0, 1]),
        (3, 4, 5): (False, [0, 0, 0]),
        (0, 5): (False, [0, 1]),
    }


def interleaved(llama: Anatomy) -> Any:
    """Heads read the two key/value heads in turn: groups of equal size, not in order."""
    change = replace_attention(attention_of(llama, 1), kv_index=torch.tensor([0, 1, 0, 1, 0, 1]))
    return edit(llama.model, change).model


def test_a_map_that_is_not_in_order_survives_further_edits(llama: Anatomy) -> None:
    model = interleaved(llama)
    attention = attention_of(Anatomy.of(model), 1)
    for change in (
        keep_heads(attention, range(6)),
        replace_attention(attention),
        replace_attention(attention, biases={"o": torch.zeros(48)}),
    ):
        again = edit(model, change).model
        assert attention_of(Anatomy.of(again), 1).kv_of_head().tolist() == [0, 1, 0, 1, 0, 1]
        assert worst(outputs(again), outputs(model)) <= 1e-6
    fewer = attention_of(Anatomy.of(edit(model, keep_heads(attention, [0, 1, 2, 3])).model), 1)
    assert fewer.kv_of_head().tolist() == [0, 1, 0, 1]


def test_unequal_groups_survive_further_edits(llama: Anatomy) -> None:
    """Four heads would divide over two key/value heads, but not the way they do here."""
    model = edit(llama.model, keep_heads(attention_of(llama, 1), [0, 3, 4, 5])).model
    attention = attention_of(Anatomy.of(model), 1)
    again = edit(model, replace_attention(attention, biases={"o": torch.zeros(48)})).model
    assert attention_of(Anatomy.of(again), 1).kv_of_head().tolist() == [0, 1, 1, 1]
    assert worst(outputs(again), outputs(model)) <= 1e-6


@pytest.mark.parametrize("heads", [[3, 4, 5], [0, 1, 2], [0, 4, 5], [5]])
def test_narrowed_heads_keep_their_own_rotary_channels(
    tiny: Any, llama: Anatomy, heads: list[int]
) -> None:
    """Each key/value head has lost rotary pairs of its own; then heads go."""
    old = attention_of(llama, 1)
    kept = torch.tensor([[0, 2, 4, 6, 8, 10], [5, 1, 3, 11, 7, 9]])
    per_head = kept[old.kv_of_head()].unsqueeze(-1)
    narrow = replace_attention(
        old,
        q=old.read_q().take_along_dim(per_head, dim=1),
        k=old.read_k().take_along_dim(kept.unsqueeze(-1), dim=1),
        rotary_index=kept,
    )
    once = edit(llama.model, narrow, check=False).model
    twice = edit(once, keep_heads(attention_of(Anatomy.of(once), 1), heads)).model
    owners = sorted({h // 3 for h in heads})
    new = attention_of(Anatomy.of(twice), 1)
    assert torch.equal(new.rotary_index(), kept[owners])

    reference = Anatomy.of(tiny.copy("tiny-llama"))
    dense = attention_of(reference, 1)
    for role, count, which in (("q", 6, kept[old.kv_of_head()]), ("k", 2, kept)):
        weight = dense.projections()[role].weight.clone().view(count, 12, 48)
        lost = torch.ones(count, 12, 1, dtype=torch.bool).scatter(1, which.unsqueeze(-1), False)
        reference.write(
            f"blocks.1.attention.{role}.weight", weight.masked_fill(lost, 0).flatten(0, 1)
        )
    weight = dense.o.weight.clone().view(48, 6, 12)
    weight[:, [h for h in range(6) if h not in heads]] = 0
    dense.o.write("weight", weight.flatten(1))
    assert worst(outputs(twice), outputs(reference.model)) <= 1e-5


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_heads_of_any_attention_are_kept(tiny: Any, data: st.DataObject) -> None:
    """Twice in a row, against the dense model with the output columns of the others at zero."""
    preset = data.draw(st.sampled_from(("tiny-llama", "tiny-gpt-neox", "tiny-gpt2", "tiny-bert")))
    source = tiny(preset)
    total = attention_of(Anatomy.of(source), 2).num_heads
    first = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    second = sorted(data.draw(st.sets(st.sampled_from(range(len(first))), min_size=1)))
    once = edit(source, keep_heads(attention_of(Anatomy.of(source), 2), first), check=False).model
    twice = edit(once, keep_heads(attention_of(Anatomy.of(once), 2), second)).model
    reference = tiny.copy(preset)
    attention = attention_of(Anatomy.of(reference), 2)
    weight = attention.o.weight.clone().view(-1, total, attention.shape.v_head_dim)
    weight[:, [h for h in range(total) if h not in {first[i] for i in second}]] = 0
    attention.o.write("weight", weight.flatten(1))
    assert worst(outputs(twice), outputs(reference)) <= 1e-5


@pytest.mark.contract("B9")
@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ([], "nothing would be left; remove the part instead"),
        ([0, 6], "indices must lie between 0 and 5"),
        ([-1], "indices must lie between 0 and 5"),
        ([1, 1], "an index is repeated"),
    ],
)
def test_heads_that_are_not_there_are_refused(llama: Anatomy, heads: list[int], said: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"blocks\.1\.attention: heads: {said}"):
        keep_heads(attention_of(llama, 1), heads)


@pytest.mark.parametrize("index", [[], [96], [-1], [3, 3]])
def test_neurons_that_are_not_there_are_refused(llama: Anatomy, index: list[int]) -> None:
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp: neurons: "):
        keep_neurons(mlp_of(llama, 1), index)


def test_neurons_may_be_given_in_any_order(llama: Anatomy) -> None:
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    applied = edit(llama.model, keep_neurons(mlp_of(llama, 1), order))
    assert applied.plain
    assert worst(outputs(applied.model), outputs(llama.model)) <= 1e-5
    assert not torch.equal(
        mlp_of(Anatomy.of(applied.model), 1).up.weight, mlp_of(llama, 1).up.weight
    )


def test_neurons_keep_the_biases_of_their_gates(tiny: Any) -> None:
    model = tiny("tiny-llama", mlp_bias=True)
    mlp = mlp_of(Anatomy.of(model), 1)
    assert mlp.gate is not None and mlp.gate.bias is not None and mlp.up.bias is not None
    with torch.no_grad():
        for projection in (mlp.gate, mlp.up):
            projection.module.bias.copy_(
                torch.randn(96, generator=torch.Generator().manual_seed(1))
            )
        kept, gone = torch.arange(1, 96, 2), torch.arange(0, 96, 2)
        mlp.down.module.weight[:, gone] = 0  # so those that go have no influence
    applied = edit(model, keep_neurons(mlp, kept))
    assert worst(outputs(applied.model), outputs(model)) <= 1e-5


# Weights that do not go together


def test_shapes_that_do_not_go_together_are_refused(llama: Anatomy) -> None:
    attention = attention_of(llama, 1)
    q, k, v, o = (getattr(attention, f"read_{r}")() for r in "qkvo")
    for given_, said in (
        ({"q": q[:, :10]}, r"blocks\.1\.attention\.k: shape \(2, 12, 48\), needs \(2, 10, 48\)"),
        ({"v": v[:, :5]}, r"attention\.o: shape \(6, 12, 48\), needs \(6, 5, 48\)"),
        ({"q": q[:5], "o": o[:5]}, r"5 query heads do not divide over 2"),
        ({"q": q[:, :9], "k": k[:, :9]}, r"blocks\.1\.attention: rotary channels come in pairs"),
        ({"q": q[:, :, :40]}, r"attention\.k: shape \(2, 12, 48\), needs \(2, 12, 40\)"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            replace_attention(attention, **given_)


@pytest.mark.contract("B6")
def test_rotary_channels_that_are_no_pairs_are_refused(llama: Anatomy) -> None:
    attention = attention_of(llama, 1)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])  # 0 turns with 6, not with 4
    turning = attention.rotary_index()
    assert turning is not None
    cut = {"q": attention.read_q()[:, kept], "k": attention.read_k()[:, kept]}
    with pytest.raises(
        InvalidInputError, match=r"channels j and j \+ 4 of a head must be a rotary pair"
    ):
        replace_attention(attention, **cut, rotary_index=turning[:, kept])
    with pytest.raises(InvalidInputError, match=r"rotary_index: shape \(2, 12\), needs \(2, 8\)"):
        replace_attention(attention, **cut)


def test_mlp_weights_of_different_widths_are_refused(llama: Anatomy) -> None:
    mlp = mlp_of(llama, 1)
    up, down = mlp.up.weight, mlp.down.weight
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp: gate does not have the width 9"):
        replace_mlp(mlp, up=up[:9], down=down[:, :9])
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp: down does not have the width 9"):
        replace_mlp(mlp, up=up[:9], gate=up[:9], down=down)


# Low rank


@pytest.mark.parametrize("rank", [0, 32, 40])
def test_ranks_that_save_nothing_are_refused_with_the_valid_ones(llama: Anatomy, rank: int) -> None:
    down = mlp_of(llama, 1).down
    with pytest.raises(
        InvalidInputError, match=rf"rank {rank} saves nothing; valid ranks are 1 to 31"
    ):
        factorize(down, torch.zeros(48, rank), torch.zeros(rank, 96))


@pytest.mark.parametrize("role", ["attention.o", "mlp.up", "mlp.down"])
def test_a_factored_map_is_the_product_in_every_family(
    tiny: Any, dense_mlps: str, role: str
) -> None:
    source = tiny(dense_mlps)
    outer_role, _, inner_role = role.partition(".")
    old = getattr(Anatomy.of(source).blocks[1], outer_role).projections()[inner_role]
    generator = torch.Generator().manual_seed(0)
    outer = torch.randn(old.out_features, 6, generator=generator) * 0.2
    inner = torch.randn(6, old.in_features, generator=generator) * 0.2
    model = edit(source, factorize(old, outer, inner)).model
    new = getattr(Anatomy.of(model).blocks[1], outer_role).projections()[inner_role]
    assert isinstance(new, FactoredProjection)
    assert new.rank == 6
    torch.testing.assert_close(new.weight, outer @ inner)
    assert (new.bias is None) == (old.bias is None)
    assert new.num_parameters == 6 * (new.in_features + new.out_features) + (
        0 if new.bias is None else new.out_features
    )
    reference = tiny.copy(dense_mlps)
    Anatomy.of(reference).write(f"blocks.1.{role}.weight", outer @ inner)
    assert worst(outputs(model), outputs(reference)) <= 1e-5


def test_only_what_was_factored_is_booked_as_changed(llama: Anatomy) -> None:
    books = edit(
        llama.model, factorize(mlp_of(llama, 1).down, torch.randn(48, 4), torch.randn(4, 96))
    ).tensor_diff
    assert books.changed == ("model.layers.1.mlp.down_proj.weight",)
    assert books.added == ("model.layers.1.mlp.down_proj.reduce",)
    assert not books.removed
    assert str(books) == f"{len(books.kept)} tensors kept, 1 changed, 1 added, 0 removed"


def test_a_slice_of_a_fused_map_is_factored_after_its_attention_is_replaced(tiny: Any) -> None:
    source = tiny("tiny-gpt2")
    q = attention_of(Anatomy.of(source), 1).q
    factors = torch.randn(48, 4), torch.randn(4, 48)
    with pytest.raises(
        InvalidInputError, match="slice of a fused map; replace the attention first"
    ):
        factorize(q, *factors)
    whole = edit(source, keep_heads(attention_of(Anatomy.of(source), 1), [0, 1, 2])).model
    q = attention_of(Anatomy.of(whole), 1).q
    model = edit(whole, factorize(q, torch.randn(36, 4), torch.randn(4, 48))).model
    assert isinstance(attention_of(Anatomy.of(model), 1).q, FactoredProjection)


# Sums of changes, and edits as JSON


def test_two_changes_of_one_value_are_refused(llama: Anatomy) -> None:
    mlp = mlp_of(llama, 1)
    low = factorize(mlp.down, torch.zeros(48, 4), torch.zeros(4, 96))
    with pytest.raises(InvalidInputError, match=r"two changes write blocks\.1\.mlp\.down\.weight"):
        keep_neurons(mlp, range(9)) + low


def test_sums_keep_everything(llama: Anatomy) -> None:
    total = remove(attention_of(llama, 0)) + keep_neurons(mlp_of(llama, 1), range(9))
    assert [e.path for e in total.edits] == [
        "blocks.0.attention",
        "blocks.1.mlp.gate",
        "blocks.1.mlp.up",
        "blocks.1.mlp.down",
    ]
    assert Change() + total == total


def test_edits_survive_json() -> None:
    edits = (
        Remove("blocks.1"),
        Remove("blocks.10.attention", drop_norm=True),
        Replace("blocks.3.mlp.up", "linear", {"in_features": 4, "out_features": 2, "bias": False}),
    )
    assert edits_from_list(json.loads(json.dumps([e.to_dict() for e in edits]))) == edits


@pytest.mark.parametrize(
    "path", ["", "blocks", "blocks.", "blocks.x", "layers.1", "blocks.1.mlp.up.weight", "blocks.-1"]
)
def test_what_is_no_address_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError, match=r"is no address of a part; valid: blocks\.N"):
        Remove(path)


def test_addresses_split_into_block_and_role() -> None:
    assert split_address("blocks.12") == (12, "")
    assert split_address("blocks.0.mlp.up") == (0, "mlp.up")
    with pytest.raises(InvalidInputError, match="a whole block can be removed but not replaced"):
        Replace("blocks.1", "linear")


# The registry of parts


def test_the_registry_is_closed_and_names_are_taken_once() -> None:
    assert "attention" in part_names() and "factors" in part_names()
    assert part_names() == sorted(part_names())
    with pytest.raises(InvalidInputError, match="'linear' is registered already"):
        register_part("linear")(lambda config: torch.nn.Identity())
    with pytest.raises(InvalidInputError, match=r"unknown part 'linaer'.*did you mean 'linear'"):
        build_part("linaer", None, {})
    with pytest.raises(InvalidInputError, match=r"part 'factors': rank 9 must lie between"):
        build_part("factors", None, {"in_features": 4, "out_features": 4, "rank": 9})


# Looking ahead


def test_a_preview_is_the_edit_for_as_long_as_it_is_open(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    anatomy = Anatomy.of(model)
    before = outputs(model)
    modules = [id(module) for module in model.modules()]
    for change in (
        remove(attention_of(anatomy, 0)) + remove(mlp_of(anatomy, 2)),
        remove(anatomy.blocks[1]),
    ):
        with preview(anatomy, change.edits) as seen:
            inside = outputs(model)
            assert seen.model is model
            gone = [b.index for b in seen.blocks if b.attention is None]
        applied = edit(model, change).model
        assert gone in ([0], [1])
        if not any(split_address(e.path)[1] == "" for e in change.edits):
            assert torch.equal(inside, outputs(applied))
        else:
            assert worst(inside, outputs(applied)) <= 1e-5
        assert [id(module) for module in model.modules()] == modules
        assert torch.equal(outputs(model), before)


def test_a_preview_is_undone_after_an_error(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    anatomy = Anatomy.of(model)
    modules = [id(module) for module in model.modules()]
    with pytest.raises(KeyError), preview(anatomy, remove(anatomy.blocks[1]).edits):
        raise KeyError
    with (
        pytest.raises(InvalidInputError),
        preview(anatomy, (Remove("blocks.0.mlp"), Remove("blocks.0.mlp.up"))),
    ):
        pass
    assert [id(module) for module in model.modules()] == modules


# Which are kept


NOT_INDICES: dict[str, tuple[Any, str]] = {
    "a number": (3, "a list of indices or a mask of 6 truth values is needed, not 3"),
    "a tensor of one number": (torch.tensor(3), "a list of indices or a mask"),
    "fractions": ([0.9, 1.2, 5.7], "not float32 numbers"),
    "whole fractions": (torch.tensor([0.0, 1.0]), "not float32 numbers"),
    "a short mask": ([True, False], "the mask has 2 truth values, and there are 6"),
    "a long mask": (torch.ones(7, dtype=torch.bool), "the mask has 7 truth values"),
    "an empty list": ([], "nothing would be left"),
    "truth and numbers": ([True, 2], "a list of indices or a mask"),
    "words": (["one"], "a list of indices or a mask"),
    "a table": ([[0, 1], [2, 3]], "a list of indices or a mask"),
    "nothing": (None, "a list of indices or a mask"),
}


@pytest.mark.parametrize("case", NOT_INDICES)
def test_fault_A16_what_is_no_list_of_indices_is_refused(llama: Anatomy, case: str) -> None:
    given, said = NOT_INDICES[case]
    attention, mlp = attention_of(llama, 0), mlp_of(llama, 0)
    for keep in (
        lambda: keep_heads(attention, given),
        lambda: keep_neurons(mlp, given),
        lambda: checked_index(given, 6, "experts"),
    ):
        with pytest.raises(InvalidInputError, match=said.replace("6", r"(6|96)")) as refusal:
            keep()
        assert "\n" not in str(refusal.value)


def test_fault_A16_a_mask_keeps_what_is_true(llama: Anatomy) -> None:
    attention = attention_of(llama, 0)
    wanted = keep_heads(attention, [0, 2, 5])
    mask = [True, False, True, False, False, True]
    for wanted_so in (mask, torch.tensor(mask), torch.tensor(mask).numpy(), (0, 2, 5)):
        found = keep_heads(attention, wanted_so)
        assert found.edits == wanted.edits
        assert all(torch.equal(found.tensors[n], t) for n, t in wanted.tensors.items())


def test_fault_A16_experts_are_kept_by_lists_and_masks(tiny: Any) -> None:
    mixture = mlp_of(Anatomy.of(tiny("tiny-mixtral")), 0)
    by_mask = keep_experts(mixture, [True, False, True, True])
    assert by_mask.edits == keep_experts(mixture, [0, 2, 3]).edits
    rows = torch.zeros(4, mixture.intermediate_size, dtype=torch.bool)
    rows[:, :8] = True
    assert keep_expert_neurons(mixture, rows).edits == keep_neurons(mixture, range(8)).edits
    with pytest.raises(InvalidInputError, match="nothing would be left"):
        keep_experts(mixture, [False] * 4)
    for wrong in (3, [3, 1], None, torch.tensor(2)):
        with pytest.raises(InvalidInputError, match=r"neurons of|a list of indices"):
            keep_expert_neurons(mixture, wrong)


@pytest.mark.parametrize("order", [3, [0.5, 1], [True, False], ["0"], None])
def test_fault_A16_an_order_of_blocks_is_a_list_of_numbers(order: Any) -> None:
    with pytest.raises(InvalidInputError, match="an arrangement is a list of block numbers, not"):
        arrange(order)
    assert arrange(torch.tensor([1, 0])).edits == arrange([1, 0]).edits
