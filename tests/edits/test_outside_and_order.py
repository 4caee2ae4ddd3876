"""Edits of norms, of the head, of whole MLPs, and of the order of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import edit, outputs, worst
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import (
    Change,
    Edit,
    Remove,
    ReorderBlocks,
    Replace,
    arrange,
    edits_from_list,
    keep_neurons,
    register_part,
    remove,
    untie,
)
from modwright.edits.edit import split_address
from modwright.edits.remodeled import edits_of


@register_part("test_scale_norm")
def _scale_norm(config: Any, hidden_size: int) -> nn.Module:
    return ScaleNorm(hidden_size)


class ScaleNorm(nn.Module):
    """No norm at all: a factor per channel. A bias, if there is one, stays unread."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def norm_edit(address: str) -> Change:
    value = {f"{address}.weight": torch.full((48,), 0.3)}
    return Change((Replace(address, "test_scale_norm", {"hidden_size": 48}),), value)


def paths(model: Any) -> list[str]:
    return [item.path for item in edits_of(model.config)]


def reopened(model: Any, place: Path, tiny: Any, preset: str) -> Any:
    import transformers

    model.save_pretrained(place)
    return getattr(transformers, tiny.auto_class(preset)).from_pretrained(place)


def test_addresses_lie_in_a_block_or_outside() -> None:
    assert split_address("blocks.12.mlp.up") == (12, "mlp.up")
    assert split_address("final_norm") == (None, "final_norm")
    for wrong in ("blocks", "Final", "a.b", "blocks.x"):
        with pytest.raises(InvalidInputError, match="is no address of a part"):
            split_address(wrong)
    with pytest.raises(
        InvalidInputError, match="outside the blocks: it can be replaced, not removed"
    ):
        Remove("final_norm")


def test_norms_are_replaced_saved_and_loaded(tiny: Any, preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    anatomy = Anatomy.of(model)
    outside = [name for name in anatomy.outer if name.endswith("norm")]
    change = norm_edit("blocks.1.mlp_norm")
    for name in outside:
        change += norm_edit(name)
    applied = edit(model, change, check=False)
    assert not applied.plain
    assert isinstance(Anatomy.of(applied.model).blocks[1].norms["mlp_norm"].module, ScaleNorm)
    assert worst(outputs(applied.model), outputs(model)) > 1e-3
    back = reopened(applied.model, tmp_path / "saved", tiny, preset)
    assert torch.equal(outputs(back), outputs(applied.model))
    assert paths(back) == [*sorted(outside), "blocks.1.mlp_norm"]


def test_a_norm_goes_with_what_it_serves(tiny: Any, decoder: str) -> None:
    normed = edit(tiny(decoder), norm_edit("blocks.1.mlp_norm"), check=False).model
    gone = edit(normed, remove(Anatomy.of(normed).blocks[1].mlp, drop_norm=True)).model
    plain = edit(tiny(decoder), remove(Anatomy.of(tiny(decoder)).blocks[1].mlp, drop_norm=True))
    assert paths(gone) == paths(plain.model)
    assert torch.equal(outputs(gone), outputs(plain.model))
    with pytest.raises(InvalidInputError):
        edit(gone, Change((Replace("blocks.1.mlp.up", "linear", {}),)))


@pytest.mark.contract("A9")
def test_a_stock_class_refuses_a_model_whose_norm_or_head_changed(
    tiny: Any, decoder: str, tmp_path: Path
) -> None:
    model = tiny(decoder)
    outside = norm_edit("final_norm") if "final_norm" in Anatomy.of(model).outer else Change()
    for index, change in enumerate((norm_edit("blocks.2.attention_norm"), outside)):
        if not change.edits:
            continue
        place = tmp_path / str(index)
        edit(model, change, check=False).model.save_pretrained(place)
        with pytest.raises(Exception, match=r"per-layer|[Aa]mbiguous|expected int, got list"):
            type(model).from_pretrained(place)


def test_a_head_of_its_own_is_plain_and_untied(tiny: Any, decoder: str, tmp_path: Path) -> None:
    model = tiny(decoder)
    anatomy = Anatomy.of(model)
    other = anatomy.outer["head"].parameters()["weight"] * 2.0
    applied = edit(model, untie(anatomy, other))
    assert applied.plain
    assert not Anatomy.of(applied.model).is_tied
    assert Anatomy.of(model).is_tied == anatomy.is_tied
    assert worst(outputs(applied.model), 2.0 * outputs(model)) < 1e-4
    back = reopened(applied.model, tmp_path / "saved", tiny, decoder)
    assert torch.equal(outputs(back), outputs(applied.model))
    assert not back.config.tie_word_embeddings


def test_a_whole_mlp_of_ours_is_the_familys_again(
    tiny: Any, dense_mlps: str, tmp_path: Path
) -> None:
    model = tiny(dense_mlps)
    mlp = Anatomy.of(model).blocks[1].mlp
    same = edit(model, Change((Replace(mlp.address, "feed_forward", mlp.shape.to_dict()),)))
    assert same.plain and torch.equal(outputs(same.model), outputs(model))

    width = mlp.intermediate_size - 8
    shape = {**mlp.shape.to_dict(), "intermediate_size": width}
    narrow = keep_neurons(mlp, range(width)).tensors
    ours = edit(model, Change((Replace(mlp.address, "feed_forward", shape),), narrow)).model
    theirs = edit(model, keep_neurons(mlp, range(width))).model
    assert worst(outputs(ours), outputs(theirs)) < 1e-5
    back = reopened(ours, tmp_path / "saved", tiny, dense_mlps)
    assert torch.equal(outputs(back), outputs(ours))
    inner = Anatomy.of(back).blocks[1].mlp
    assert inner.is_generic and inner.intermediate_size == width
    narrower = edit(back, keep_neurons(inner, range(5))).model
    assert worst(outputs(narrower), outputs(edit(model, keep_neurons(mlp, range(5))).model)) < 1e-5
    gone = edit(back, remove(inner)).model
    assert paths(gone) == ["blocks.1.mlp"]


def test_blocks_stand_in_any_order(tiny: Any, preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    anatomy = Anatomy.of(model)
    types = getattr(model.config, "layer_types", None)
    order = (0, 1, 2, 1, 2, 3)
    applied = edit(model, arrange(order))
    assert applied.plain or any("attention" in path for path in paths(applied.model))
    longer = Anatomy.of(applied.model)
    assert len(longer.blocks) == 6
    if types is not None:
        assert list(applied.model.config.layer_types) == [types[i] for i in order]
    added = sum(anatomy.blocks[i].num_parameters for i in (1, 2))
    assert longer.num_parameters == anatomy.num_parameters + added
    # A copy is a copy: changing one leaves the other.
    first, second = (longer.blocks[i].attention.q.module.weight for i in (1, 3))
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
    back = reopened(applied.model, tmp_path / "saved", tiny, preset)
    assert torch.equal(outputs(back), outputs(applied.model))
    # Leaving the copies out again gives the old model.
    again = edit(back, arrange((0, 1, 2, 5))).model
    assert torch.equal(outputs(again), outputs(model))


def test_what_was_edited_moves_with_its_block(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    narrow = edit(model, keep_neurons(Anatomy.of(model).blocks[2].mlp, range(9))).model
    moved = edit(narrow, arrange((2, 0, 2))).model
    widths = [block.mlp.intermediate_size for block in Anatomy.of(moved).blocks]
    full = Anatomy.of(model).blocks[0].mlp.intermediate_size
    assert widths == [9, full, 9]


@pytest.mark.parametrize(
    ("order", "said"),
    [((0, 9), "no block 9; the model has blocks 0 to 3"), ((), "without blocks"), ((-1,), "no")],
)
def test_orders_that_cannot_be_are_refused(tiny: Any, order: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        edit(tiny("tiny-llama"), arrange(order))


def test_an_order_stands_alone_and_travels_in_plans_only(tiny: Any) -> None:
    model = tiny("tiny-llama")
    both = arrange((0, 1)) + remove(Anatomy.of(model).blocks[0].mlp)
    with pytest.raises(InvalidInputError, match="an arrangement of blocks is a plan of its own"):
        edit(model, both)
    stored = [item.to_dict() for item in arrange((1, 0)).edits]
    back: tuple[Edit, ...] = edits_from_list(stored)
    assert back == (ReorderBlocks((1, 0)),)
    from modwright.edits.remodeled import remodeled

    kind: Any = remodeled(type(model))
    config = kind.config_class(**{**model.config.to_dict(), "edits": stored})
    with pytest.raises(InvalidInputError, match="belongs into a plan"):
        kind(config)
