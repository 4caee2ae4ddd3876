"""The older module tree of ViT is seen by its attributes, and read and edited like today's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from older_vit import OlderVitModel

from helpers import outputs, random_data, worst
from modwright.anatomy import Anatomy
from modwright.anatomy.families import family_of
from modwright.anatomy.families.vit import OlderVit, Vit
from modwright.calibration import SecondMoments, Similarity, calibrate
from modwright.cost import count
from modwright.edits import Change, Plan, keep_heads, keep_neurons, remove
from modwright.edits import apply as apply_plan
from modwright.edits.replay import replay


@pytest.fixture
def new(tiny: Any) -> Any:
    model = tiny("tiny-vit")
    if not hasattr(model, "layers"):
        pytest.skip("this transformers builds the older tree itself")
    return model


@pytest.fixture
def old(new: Any) -> Any:
    return OlderVitModel(new)


def test_the_tree_is_told_by_attributes_not_by_the_config(new: Any, old: Any) -> None:
    assert type(family_of(new.config, new)) is Vit
    assert type(family_of(old.config, old)) is OlderVit
    assert type(family_of(old.config)) is Vit, "without a model it is today's"
    assert old.encoder.layer[0].attention.attention.query is not None
    assert torch.equal(outputs(old), outputs(new))


def test_both_trees_have_the_same_parts_with_the_same_values(new: Any, old: Any) -> None:
    theirs = dict(Anatomy.of(old).parts())
    for address, part in Anatomy.of(new).parts():
        assert type(theirs[address]) is type(part)
        values = theirs[address].parameters()
        assert values.keys() == part.parameters().keys()
        assert all(torch.equal(values[n], t) for n, t in part.parameters().items()), address
    assert len(theirs) == len(dict(Anatomy.of(new).parts()))
    shapes = [b.attention.shape for b in Anatomy.of(old).blocks if b.attention is not None]
    assert [s.project_out for s in shapes] == [False] * 4
    mine = Anatomy.of(new).blocks[0].attention
    assert mine is not None and mine.shape.project_out
    assert count(old).prefill_macs == count(new).prefill_macs


def test_writing_through_the_old_tree_is_writing_through_the_new(new: Any, old: Any) -> None:
    for address in ("blocks.1.attention.o.weight", "blocks.2.mlp.down.bias", "final_norm.weight"):
        part, _, leaf = address.rpartition(".")
        whole = Anatomy.of(old)
        value = torch.randn_like(dict(old_values(whole))[address])
        whole.write(address, value)
        assert torch.equal(dict(old_values(Anatomy.of(old)))[address], value), (part, leaf)


def old_values(anatomy: Anatomy) -> list[tuple[str, torch.Tensor]]:
    return [(f"{a}.{n}", t) for a, part in anatomy.parts() for n, t in part.parameters().items()]


def test_statistics_are_the_same(new: Any, old: Any) -> None:
    for collector in (Similarity(), Similarity(drop_norm=False), SecondMoments()):
        mine = calibrate(Anatomy.of(new), random_data(new), [collector])
        theirs = calibrate(Anatomy.of(old), random_data(old), [collector])
        for one, two in zip(mine, theirs):
            assert one.keys() == two.keys()
            assert all(torch.allclose(one[n], two[n], atol=1e-5) for n in one)


def _several(anatomy: Anatomy) -> Change:
    blocks: Any = anatomy.blocks
    return (
        remove(blocks[0].attention)
        + remove(blocks[1].mlp)
        + keep_heads(blocks[1].attention, [1, 2])
        + keep_heads(blocks[2].attention, [0, 1, 2])
        + keep_neurons(blocks[3].mlp, range(40))
    )


def test_the_same_edits_give_the_same_function(new: Any, old: Any) -> None:
    """An older transformers builds the older tree; edits are placed into it by the same words."""
    anatomy = Anatomy.of(new)
    change = _several(anatomy)
    edited = apply_plan(new, Plan.of(anatomy, "test", change)).model
    replay(old, family_of(old.config, old), change.edits)
    target, source = Anatomy.of(old), dict(old_values(Anatomy.of(edited)))
    assert [b.attention is None for b in target.blocks] == [True, False, False, False]
    assert [b.mlp is None for b in target.blocks] == [False, True, False, False]
    for address, _ in old_values(target):
        target.write(address, source[address])
    assert len(old_values(target)) == len(source)
    assert worst(outputs(old), outputs(edited)) <= 1e-5
