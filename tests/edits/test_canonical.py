"""Whether a stock config can say an edit, and what is refused of copies of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edit_cases import attention_of

from helpers import edit, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.anatomy.families.llama import Llama
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, arrange, keep_heads, keep_neurons, remove
from modwright.edits.plan import Plan


def in_every_layer(anatomy: Anatomy, keep: int) -> Change:
    change = Change()
    for block in anatomy.blocks:
        heads = attention_of(anatomy, block.index).num_heads
        change += keep_heads(attention_of(anatomy, block.index), range(heads - keep))
    return change


def test_fault_B17_a_number_that_no_stock_config_takes_is_not_plain(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    for fewer in (1, 2):
        result = edit(source, in_every_layer(Anatomy.of(source), fewer))
        assert result.verification is not None and result.verification.ok
        blocks = Anatomy.of(result.model).blocks
        before = attention_of(Anatomy.of(source), 0).num_heads
        assert {b.attention.num_heads for b in blocks if b.attention} == {before - fewer}


def test_fault_B17_five_of_six_heads_everywhere(tiny: Any) -> None:
    source = tiny("tiny-llama")
    assert not edit(source, in_every_layer(Anatomy.of(source), 1)).plain
    assert edit(source, in_every_layer(Anatomy.of(source), 3)).plain  # the keys of the first group


def test_fault_B17_a_mistake_in_a_family_is_an_error(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny("tiny-llama")
    anatomy = Anatomy.of(source)
    change = Change()
    for block in anatomy.blocks:
        change += keep_neurons(block.mlp, range(48))
    assert edit(source, change).plain
    plan = Plan.of(anatomy, "test", change)
    right = Llama.read_mlp

    def wrong(self: Any, block: Any, address: str) -> Any:
        if not hasattr(self.config, "edits") and self.config.intermediate_size == 48:
            raise TypeError("a mistake in a family")
        return right(self, block, address)

    monkeypatch.setattr(Llama, "read_mlp", wrong)
    from modwright.edits import apply

    with pytest.raises(TypeError, match="a mistake in a family"):
        apply(source, plan)


def test_fault_A23_one_value_for_several_copies_is_refused(tiny: Any) -> None:
    source = tiny("tiny-llama")
    before = snapshot(source)
    value = torch.zeros(48)
    for order, said in (
        ([0, 1, 1, 1, 2], "one value for blocks.1.mlp_norm.weight, and 3 copies of blocks.1"),
        ([1, 1], "one value for blocks.1.mlp_norm.weight, and 2 copies"),
    ):
        change = arrange(order) + Change((), {"blocks.1.mlp_norm.weight": value})
        with pytest.raises(InvalidInputError, match=said) as refusal:
            edit(source, change)
        assert "\n" not in str(refusal.value)
    assert unchanged(source, before)
    moved = edit(source, arrange([2, 1, 0]) + Change((), {"blocks.2.mlp_norm.weight": value}))
    assert (
        float(Anatomy.of(moved.model).blocks[0].norms["mlp_norm"].parameters()["weight"].sum()) == 0
    )
    copies = edit(source, arrange([0, 1, 1]) + Change((), {"blocks.0.mlp_norm.weight": value}))
    assert "model.layers.2.mlp.up_proj.weight" in copies.tensor_diff.kept
    assert "model.layers.0.post_attention_layernorm.weight" in copies.tensor_diff.changed


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModelForMaskedLM"])
def test_fault_B18_an_encoder_is_checked_as_one_whatever_its_head(tiny: Any, auto: str) -> None:
    source = tiny("tiny-bert", auto=auto)
    anatomy = Anatomy.of(source)
    result = edit(source, keep_heads(attention_of(anatomy, 1), [0, 2]))
    names = [check.name for check in result.verification.checks] if result.verification else []
    assert names == ["finite outputs", "padding has no influence"]


def test_edits_stand_in_the_order_of_the_model_whatever_was_made_first(tiny: Any) -> None:
    source = tiny("tiny-llama")

    def after(*addresses: str) -> list[dict[str, Any]]:
        model = source
        for address in addresses:
            model = edit(model, remove(address)).model
        found: list[dict[str, Any]] = model.config.edits
        return found

    one, other = "blocks.1.mlp", "blocks.2.attention"
    assert after(one, other) == after(other, one)
    assert [entry["path"] for entry in after(other, one)] == [one, other]
