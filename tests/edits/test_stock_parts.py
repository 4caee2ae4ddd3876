"""Components that are the stock part, or compute what it does from the same tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.checkpoint.saving import save
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, remove
from modwright.edits.edit import RevertEdit
from modwright.edits.remodeled import edits_of
from modwright.edits.stock_parts import has_stock_tensors, is_fulfilled, may_be_stock
from modwright.nn import FeedForwardShape
from modwright.nn.component import component, has_shape

NESTED = {"hidden_size": 48, "intermediate_size": 96}


class Nested(nn.Module):
    """The MLP of a llama, whose first neurons could also work alone."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        out: Tensor = self.down_proj(inner)
        return out


class Misnamed(Nested):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.open_proj = self.up_proj
        del self.up_proj


def of_llama(config: Any, hidden_size: int, intermediate_size: int) -> bool:
    told = (config.hidden_size, config.intermediate_size, config.hidden_act, config.mlp_bias)
    return told == (hidden_size, intermediate_size, "silu", False)


class Halved(nn.Module):
    """Half of an MLP's result: another function with the same numbers."""

    def __init__(self, shape: FeedForwardShape) -> None:
        super().__init__()
        self.shape, self.inner = shape, nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with registries_restored():
        component("nested", "channel_mixer", stock_tensors=of_llama)(Nested)
        component("misnamed", "channel_mixer", stock_tensors=of_llama)(Misnamed)
        component("halved", "channel_mixer", shape=FeedForwardShape)(Halved)
        yield


def nested_in(source: Any, index: int, **sizes: int) -> Change:
    """The stock values, as far as they are asked for."""
    mlp, arguments = Anatomy.of(source).blocks[index].mlp, {**NESTED, **sizes}
    assert mlp is not None
    change = Change((Replace(mlp.address, "nested", arguments),))
    width = arguments["intermediate_size"]
    values = {
        f"{mlp.address}.{role}_proj.weight": p.weight[:, :width]
        if role == "down"
        else p.weight[:width]
        for role, p in mlp.projections().items()
    }
    return change + Change((), values)


def stored(model: Any, place: Path) -> dict[str, Any]:
    save(model, place)
    found: dict[str, Any] = json.loads((place / "config.json").read_text())
    return found


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(torch.arange(12).view(1, -1)).logits
    return out


def test_the_edit_stays_and_the_file_is_that_of_the_stock_class(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    result = edit(source, nested_in(source, 1))
    assert not result.plain and isinstance(result.model.model.layers[1].mlp, Nested)
    config = stored(result.model, tmp_path / "out")
    assert [one["part"] for one in config["edits"]] == ["nested"]
    assert config["intermediate_size"] == 96
    assert not {"modwright_stock", "per_layer_config"} & config.keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(again.model.layers[1].mlp, Nested)
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock.model.layers[1].mlp) is type(source.model.layers[1].mlp)
    for model in (result.model, again, stock):
        assert torch.equal(logits(model), logits(source))


def test_with_other_numbers_stock_classes_refuse_the_file(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    result = edit(source, nested_in(source, 1, intermediate_size=64))
    assert stored(result.model, tmp_path / "out")["intermediate_size"] == [96, 64, 96, 96]


def test_other_edits_beside_it_are_told_to_stock_classes(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    gone = remove(Anatomy.of(source).blocks[2].mlp)
    result = edit(source, nested_in(source, 1) + gone)
    config = stored(result.model, tmp_path / "out")
    assert config["intermediate_size"] == [96, 96, 0, 96]
    assert list(config["per_layer_config"]) == ["2"]


def test_a_plan_needs_no_values_where_the_modules_are_the_same(tiny: Any) -> None:
    source = tiny("tiny-llama")
    model = edit(source, Change((Replace("blocks.1.mlp", "nested", NESTED),))).model
    (made,) = edits_of(model.config)
    assert has_stock_tensors(made, model.config) and not may_be_stock(made)
    assert model.model.layers[1].mlp.up_proj.weight is source.model.layers[1].mlp.up_proj.weight
    assert torch.equal(logits(model), logits(source))


def test_a_component_that_has_other_tensors_than_it_says_is_refused(tiny: Any) -> None:
    source = tiny("tiny-llama")
    change = Change((Replace("blocks.0.mlp", "misnamed", NESTED),))
    with pytest.raises(InvalidInputError, match=r"blocks\.0\.mlp: misnamed says .* mlp\.open_proj"):
        edit(source, change)


def test_an_edit_back_and_forth_leaves_nothing(tiny: Any) -> None:
    source = tiny("tiny-llama")
    there = edit(source, nested_in(source, 1)).model
    values = {
        f"blocks.1.mlp.{role}.weight": p.weight
        for role, p in Anatomy.of(source).blocks[1].mlp.projections().items()
    }
    back = edit(there, Change((RevertEdit("blocks.1.mlp"),), values))
    assert back.plain and torch.equal(logits(back.model), logits(source))


def test_only_what_says_so_is_the_stock_part(tiny: Any) -> None:
    source = tiny("tiny-llama")
    anatomy = Anatomy.of(source)
    mlp = anatomy.blocks[0].mlp
    assert mlp is not None
    own = mlp.shape.to_dict()
    same = Replace(mlp.address, "feed_forward", own)
    assert may_be_stock(same) and is_fulfilled(same, anatomy)
    assert not is_fulfilled(Replace("blocks.0.attention", "feed_forward", own), anatomy)
    assert not is_fulfilled(
        Replace(mlp.address, "feed_forward", {**own, "activation": "relu"}), anatomy
    )
    other = Replace(mlp.address, "halved", own)
    assert not may_be_stock(other) and not is_fulfilled(other, anatomy)
    result = edit(
        source,
        Change(
            (other,),
            {
                f"{mlp.address}.inner.weight": torch.zeros(48, 48),
                f"{mlp.address}.inner.bias": torch.zeros(48),
            },
        ),
    )
    assert not result.plain


def test_a_component_of_a_users_own_may_be_the_stock_part(tiny: Any) -> None:
    component("whole", "channel_mixer", shape=FeedForwardShape, is_stock=has_shape)(Halved)
    source = tiny("tiny-llama")
    mlp = Anatomy.of(source).blocks[0].mlp
    assert mlp is not None
    result = edit(source, Change((Replace(mlp.address, "whole", mlp.shape.to_dict()),)))
    assert result.plain


@pytest.mark.parametrize(
    ("address", "sizes", "same"),
    [
        ("blocks.0.mlp.up", (48, 96, False), True),
        ("blocks.0.mlp.up", (48, 96, True), False),
        ("blocks.0.mlp.up", (48, 95, False), False),
        ("blocks.0.mlp", (48, 96, False), False),
        ("head", (48, 128, False), True),
        ("embed", (48, 128, False), False),
        ("nowhere", (48, 96, False), False),
    ],
)
def test_a_linear_layer_is_the_stock_one_where_widths_and_bias_agree(
    tiny: Any, address: str, sizes: tuple[int, int, bool], same: bool
) -> None:
    told = dict(zip(("in_features", "out_features", "bias"), sizes))
    anatomy = Anatomy.of(tiny("tiny-llama"))
    assert is_fulfilled(Replace(address, "linear", told), anatomy) is same


def test_arguments_that_fit_no_shape_are_refused_in_one_line(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny("tiny-llama"))
    with pytest.raises(InvalidInputError, match=r"part 'feed_forward'.*'wide'"):
        is_fulfilled(Replace("blocks.0.mlp", "feed_forward", {"wide": 3}), anatomy)
