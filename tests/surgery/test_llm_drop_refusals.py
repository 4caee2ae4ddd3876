"""LLM-Drop: the lists of the reference implementation, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_cases import data, drop, method, removed

from helpers import edit, outputs
from modwright.anatomy import Anatomy
from modwright.calibration import TokenWindows
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.edits import apply as apply_plan
from modwright.edits import keep_heads, remove
from modwright.surgery import apply, make_method, plan
from modwright.surgery.llm_drop import (
    DropLists,
    LlmDrop,
)

# The lists of the reference implementation


def test_lists_come_as_indices_or_as_booleans() -> None:
    indices = DropLists.from_config({"drop_attn_list": [3, 1], "drop_mlp_list": [1]})
    assert indices == DropLists((3, 1), (1,))
    assert indices.to_config() == {"drop_attn_list": [1, 3], "drop_mlp_list": [1]}
    booleans = {"drop_attn_list": [False, True, False, True], "drop_mlp_list": [False] * 4}
    assert DropLists.from_config(booleans, 4) == DropLists((1, 3), ())
    assert DropLists.from_config({"drop_mlp_list": None, "drop_attn_list": []}) == DropLists()
    assert DropLists.from_config({"drop_mlp_list": [2]}) == DropLists((), (2,))


@pytest.mark.parametrize("target", ["block", "joint", "mixed"])
def test_a_plan_written_as_lists_is_read_back_as_the_same_plan(
    tiny: Any, preset: str, target: str, tmp_path: Path
) -> None:
    model = tiny(preset)
    if target == "mixed":
        lists = {"drop_attn_list": [0, 2], "drop_mlp_list": [2, 3]}
        first = drop(model, lists, tmp_path).model
        written = lists
    else:
        decided = plan(model, method(n=2, target=target), data(model))
        first, written = apply_plan(model, decided).model, decided.reasons["drop_lists"]
    second = drop(model, written, tmp_path)
    assert torch.equal(outputs(second.model), outputs(first))
    flags = {key: [i in indices for i in range(4)] for key, indices in written.items() if indices}
    third = drop(model, {"num_hidden_layers": 4, **flags}, tmp_path)
    assert torch.equal(outputs(third.model), outputs(first))
    again = plan(model, method(lists=str(tmp_path / "config.json")))
    assert again.reasons["drop_lists"] == {"drop_attn_list": [], "drop_mlp_list": []} | {
        key: sorted(indices) for key, indices in written.items()
    }


def test_a_block_in_both_lists_goes_whole(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    applied = drop(model, {"drop_attn_list": [1, 2], "drop_mlp_list": [2]}, tmp_path)
    assert len(Anatomy.of(applied.model).blocks) == 3
    assert removed(applied.model) == {"attention": [1], "mlp": []}
    decided = plan(model, method(lists=str(tmp_path / "config.json")))
    assert decided.reasons["removed"] == {"attention": [1], "mlp": [], "block": [2]}
    assert method(lists=str(tmp_path / "config.json")).wants_data() is False


LISTS = {
    "out of range": ({"drop_attn_list": [4]}, "no block 4; the model has blocks 0 to 3"),
    "negative": ({"drop_mlp_list": [-1]}, "no block -1; the model has blocks 0 to 3"),
    "twice": ({"drop_attn_list": [1, 1]}, "the attention list names a layer twice"),
    "words": ({"drop_attn_list": ["1"]}, "layer indices, or one boolean per layer"),
    "mixed": ({"drop_attn_list": [True, 2]}, "layer indices, or one boolean per layer"),
    "a number": ({"drop_attn_list": 3}, "layer indices, or one boolean per layer"),
    "a word": ({"drop_attn_list": "12"}, "layer indices, or one boolean per layer"),
    "too few": ({"drop_attn_list": [True]}, "has 1 booleans; the model has 4 layers"),
    "too many": ({"drop_mlp_list": [False] * 5}, "has 5 booleans; the model has 4 layers"),
    "none": ({"other": 1}, "neither of drop_attn_list, drop_mlp_list"),
}


@pytest.mark.parametrize("case", LISTS)
def test_bad_lists_are_refused(tiny: Any, case: str, tmp_path: Path) -> None:
    config, words = LISTS[case]
    with pytest.raises(InvalidInputError, match=words):
        drop(tiny("tiny-llama"), config, tmp_path)


def test_a_list_of_what_is_gone_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    reduced = edit(model, remove(Anatomy.of(model).blocks[1].attention)).model
    with pytest.raises(InvalidInputError, match="block 1 has no attention any more"):
        drop(reduced, {"drop_attn_list": [1]}, tmp_path)


def test_an_unreadable_list_is_refused(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "nowhere.json"):
        with pytest.raises(CheckpointError, match="no readable config"):
            plan(tiny("tiny-llama"), method(lists=str(tmp_path / name)))


# What is refused

OPTIONS = {
    "negative": ({"n": -1}, "n must be 0 or more, not -1"),
    "part of one": ({"n": 1.5}, "n: .*whole number.*1.5"),
    "a word": ({"n": "some"}, "n: .*whole number.*'some'"),
    "target": ({"target": "attn"}, "target.*'attention', 'mlp', 'block' or 'joint'.*'attn'"),
    "mode": ({"mode": "twice"}, "mode.*'one_shot' or 'iterative'.*'twice'"),
    "unknown": ({"targets": "mlp"}, "unknown option of llm_drop 'targets'.*mean 'target'"),
    "in a row": ({"n": 2, "consecutive": True}, "consecutive needs target 'block' and mode"),
    "in a row, one by one": (
        {"n": 2, "target": "block", "mode": "iterative", "consecutive": True},
        "consecutive needs target 'block' and mode 'one_shot'",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options_are_refused(case: str) -> None:
    options, words = OPTIONS[case]
    with pytest.raises(InvalidInputError, match=words) as refusal:
        make_method("llm_drop", options)
    assert "\n" not in str(refusal.value)


def test_fault_A16_how_many_go_has_no_default() -> None:
    for make in (LlmDrop, lambda: make_method("llm_drop"), lambda: LlmDrop(target="mlp")):
        with pytest.raises(InvalidInputError, match="n is missing: how many parts are to go"):
            make()
    assert LlmDrop(n=0).title() == "drop 0 attentions"
    assert LlmDrop(lists="config.json").count == 0


def test_bad_options_are_refused_in_python_too() -> None:
    for options, words in (
        ({"target": "attn"}, "valid values: attention, mlp, block, joint"),
        ({"mode": "often"}, "valid values: one_shot, iterative"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            LlmDrop(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "most"), [("attention", 4), ("mlp", 4), ("joint", 8), ("block", 3)]
)
@pytest.mark.parametrize("mode", ["one_shot", "iterative"])
def test_more_than_there_are_is_refused_before_any_work(
    tiny: Any, target: str, most: int, mode: str
) -> None:
    model = tiny("tiny-llama")
    wanted = method(n=most + 1, target=target, mode=mode)
    words = f"n={most + 1}, but only 0 to {most} {target} parts can go"
    no_data = TokenWindows((), {})
    for refused in (
        lambda: plan(model, wanted, no_data),
        lambda: wanted.parameter_bounds(Anatomy.of(model)),
    ):
        with pytest.raises(InvalidInputError, match=words):
            refused()
    assert len(plan(model, method(n=most, target=target), data()).edits) == most


def test_without_data_it_is_refused(tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match="llm_drop needs calibration data"):
        plan(tiny("tiny-llama"), method(n=1))
    with pytest.raises(InvalidInputError, match="llm_drop needs calibration data"):
        method(n=1).plan(Anatomy.of(tiny("tiny-llama")))
    with pytest.raises(InvalidInputError, match="no calibration data"):
        plan(tiny("tiny-llama"), method(n=1), TokenWindows((), {"tokens": 0}))


def test_activations_that_are_not_finite_are_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    for mode in ("one_shot", "iterative"):
        with pytest.raises(InvalidInputError, match="after block 1 are not finite"):
            plan(model, method(n=1, mode=mode), data())


def test_a_quantised_model_is_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.is_quantized = True
    with pytest.raises(InvalidInputError, match="open it dequantised"):
        plan(model, method(n=1, mode="iterative"), data())


def test_narrowed_and_replaced_attentions_can_go(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    anatomy = Anatomy.of(model)
    uneven = range(1, anatomy.blocks[1].attention.num_heads)
    narrowed = edit(model, keep_heads(anatomy.blocks[1].attention, uneven)).model
    for mode in ("one_shot", "iterative"):
        applied = apply(narrowed, method(n=4, mode=mode), data(model))
        assert removed(applied.model)["attention"] == [0, 1, 2, 3]
