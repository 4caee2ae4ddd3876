"""A model and a part are taken as they are meant, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import address_of, model_of
from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.cost import count
from modwright.edits import apply, remove


def test_fault_B4_a_model_is_found_in_what_holds_it(tiny: Any) -> None:
    model = tiny("tiny-llama")
    opened = open_checkpoint(model)
    anatomy = Anatomy.of(opened)
    for given in (model, opened, anatomy):
        assert model_of(given) is model
    assert Anatomy.of(anatomy) is anatomy
    assert open_checkpoint(opened) is opened


@pytest.mark.parametrize("given", [None, 3, "preset:tiny-llama", {"model": 1}, []])
def test_fault_B4_what_is_no_model_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected a model, or what") as refusal:
        Anatomy.of(given)
    assert "\n" not in str(refusal.value)
    if isinstance(given, str):
        assert "modwright.open('preset:tiny-llama')" in str(refusal.value)


@pytest.mark.parametrize("how", ["wrapped", "injected"])
def test_fault_B10_a_model_with_adapters_is_refused_by_name(
    how: str, tiny: Any, tmp_path: Any
) -> None:
    import peft

    config = peft.LoraConfig(target_modules="all-linear" if how == "wrapped" else ["q_proj"])
    make: Any = peft.get_peft_model if how == "wrapped" else None
    model = tiny.copy("tiny-llama")
    tuned = make(model, config) if make else peft.inject_adapter_in_model(config, model)
    for refused in (
        lambda: Anatomy.of(tuned),
        lambda: count(tuned),
        lambda: apply(tuned, remove("blocks.0.mlp")),
        lambda: save(tuned, tmp_path / "out"),
    ):
        with pytest.raises(InvalidInputError, match=r"PEFT adapters .*merge_and_unload") as refusal:
            refused()
        assert "\n" not in str(refusal.value)
    if how == "wrapped":
        assert len(Anatomy.of(tuned.merge_and_unload()).blocks) == 4


def test_fault_B10_a_config_that_asks_for_tuples_is_refused_by_name(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.config.return_dict = False
    with pytest.raises(InvalidInputError, match=r"set model\.config\.return_dict = True"):
        Anatomy.of(model)


def test_fault_B10_a_config_that_cannot_be_written_is_refused_in_one_line(
    tiny: Any, tmp_path: Any
) -> None:
    model = tiny.copy("tiny-llama")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model.set_attn_implementation("sdpa")  # which gives none
    with pytest.raises(
        InvalidInputError, match=r"config cannot be written: .*output_attentions"
    ) as e:
        save(model, tmp_path / "out")
    assert "\n" not in str(e.value)


def test_fault_B4_a_part_is_named_by_its_address(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny("tiny-llama"))
    assert address_of(anatomy.blocks[0].attention) == address_of("blocks.0.attention")
    for given in (None, 3, "", anatomy):
        with pytest.raises(InvalidInputError, match="expected a part of an anatomy or its address"):
            address_of(given)


def test_fault_B13_every_address_finds_what_it_names(tiny: Any) -> None:
    for name in ("tiny-llama", "tiny-gpt2", "tiny-bert"):
        anatomy = Anatomy.of(tiny(name))
        block = anatomy.blocks[1]
        assert anatomy.part("blocks.1") is block
        for role in ("up", "down"):
            found = anatomy.part(f"blocks.1.mlp.{role}")
            assert found.weight.equal(block.mlp.projections()[role].weight)
        assert anatomy.part("blocks.1.attention.q").address == "blocks.1.attention.q"
        assert repr(anatomy.part("blocks.1.mlp_norm")) == repr(block.norms["mlp_norm"])
    assert anatomy.part("embed") is anatomy.outer["embed"]
    with pytest.raises(InvalidInputError, match=r"did you mean 'blocks\.1\.mlp\.up'"):
        anatomy.part("blocks.1.mlp.upp")


def test_a_notebook_counts_a_tied_table_once(tiny: Any) -> None:
    page = Anatomy.of(tiny("tiny-gpt2"))._repr_html_()
    assert "the table of embed, 0 parameters of its own" in page
    assert (
        page.count("parameters</li>") == page.count("<li>") - page.count("parameters)</code>") - 1
    )
