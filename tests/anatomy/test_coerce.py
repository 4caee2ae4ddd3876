"""A model and a part are taken as they are meant, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import address_of, model_of
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError


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
