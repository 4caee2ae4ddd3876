"""An edited model gives one attention map a layer, and one hidden state a layer and one more."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers import batch_of, edit, number_of_hooks
from modwright.anatomy import Anatomy
from modwright.edits import Change, keep_heads, remove
from modwright.edits.remodeled import base_class

CASES: dict[str, Callable[[Any], Change]] = {
    "removed": lambda a: remove(a.blocks[1].attention),
    "narrowed": lambda a: keep_heads(a.blocks[0].attention, [0]),
    "both": lambda a: keep_heads(a.blocks[0].attention, [0]) + remove(a.blocks[1].attention),
    "all narrowed": lambda a: sum((keep_heads(b.attention, [0]) for b in a.blocks), Change()),
    "a block": lambda a: remove(a.blocks[2]) + remove(a.blocks[3].attention),
}


def asked(model: Any, **more: Any) -> Any:
    model.set_attn_implementation("eager")
    wanted = {"output_attentions": True, "output_hidden_states": True, **more}
    with torch.no_grad():
        return model(**batch_of(model), **wanted)


@pytest.mark.parametrize("case", CASES)
def test_fault_A17_there_is_one_map_a_layer(tiny: Any, preset: str, case: str) -> None:
    model = edit(tiny(preset), CASES[case](Anatomy.of(tiny(preset))), check=False).model
    blocks = Anatomy.of(model).blocks
    hooks = number_of_hooks(model)
    found = asked(model)
    assert len(found.attentions) == len(blocks) and len(found.hidden_states) == len(blocks) + 1
    for block, weights in zip(blocks, found.attentions):
        if block.attention is None:
            assert weights is None
        else:
            assert weights.shape[1] == block.attention.num_heads
            assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert hooks == 0 or number_of_hooks(model) == hooks  # transformers' own stay
    given = asked(model, return_dict=False)
    assert isinstance(given, tuple) and [type(x) for x in found.attentions] in [
        [type(x) for x in part] for part in given if isinstance(part, tuple)
    ]


def test_fault_A17_maps_stay_in_the_layer_that_they_are_of(tiny: Any) -> None:
    """Behind a removed attention that added nothing, the maps are the stock model's."""
    stock = tiny.copy("tiny-llama")
    anatomy = Anatomy.of(stock)
    anatomy.write("blocks.1.attention.o.weight", torch.zeros(48, 72))
    truth = asked(stock).attentions
    model = edit(stock, remove(anatomy.blocks[1].attention)).model
    found = asked(model).attentions
    for index in (0, 2, 3):
        assert torch.allclose(found[index], truth[index], atol=1e-6)
    assert found[1] is None


def test_fault_A17_a_fused_attention_gives_no_maps(tiny: Any) -> None:
    model = edit(tiny("tiny-llama"), CASES["both"](Anatomy.of(tiny("tiny-llama")))).model
    model.set_attn_implementation("sdpa")
    found = model(**batch_of(model), output_attentions=True).attentions
    assert found == (None,) * 4


def test_fault_A17_generating_gives_them_at_every_step(tiny: Any) -> None:
    model = edit(tiny("tiny-llama"), CASES["both"](Anatomy.of(tiny("tiny-llama")))).model
    model.set_attn_implementation("eager")
    ids = torch.tensor([[3, 4, 5]])
    out = model.generate(
        ids,
        max_new_tokens=2,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    steps = [[None if w is None else w.shape[-1] for w in step] for step in out.attentions]
    assert steps == [[3, None, 3, 3], [4, None, 4, 4]]


def test_the_forward_takes_what_the_stock_one_takes(tiny: Any) -> None:
    model = edit(tiny("tiny-llama"), CASES["both"](Anatomy.of(tiny("tiny-llama")))).model
    own, stock = type(model).forward, base_class(type(model)).forward
    assert inspect.signature(own) == inspect.signature(stock)
