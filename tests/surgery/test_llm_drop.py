"""LLM-Drop on tiny models: what is scored, what is picked, what is left, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_cases import PARTS, TARGETS, data, drop, method, removed
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import batch_of, edit, number_of_hooks, outputs, snapshot, unchanged, worst
from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, Similarity, calibrate
from modwright.core.errors import InvalidInputError
from modwright.cost import kv_cache_bytes
from modwright.edits import apply as apply_plan
from modwright.edits import remove
from modwright.surgery import apply, plan
from modwright.surgery.llm_drop import (
    consecutive_blocks,
    gap_table,
    most_similar,
)


def silence(model: Any, part: str, index: int) -> None:
    """The sublayer adds nothing: weights and bias of its last map are zero."""
    sublayer = getattr(Anatomy.of(model).blocks[index], part)
    last = sublayer.o if part == "attention" else sublayer.down
    for name, tensor in last.parameters().items():
        last.write(name, torch.zeros_like(tensor))


# A part that does nothing


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_does_nothing_goes_first_and_nothing_changes(
    tiny: Any, dense_mlps: str, part: str
) -> None:
    model = tiny.copy(dense_mlps)
    silence(model, part, 2)
    anatomy = Anatomy.of(model)
    decided = plan(model, method(n=1, target=part), data(model))
    if anatomy.blocks[2].layout != "post":  # there the norm still changes the stream
        assert abs(decided.reasons["scores"][part][2] - 1) <= 1e-6
        assert decided.reasons["order"] == [f"{part} 2"]
        assert plan(model, method(n=1, target="joint"), data(model)).reasons["order"] == [
            f"{part} 2"
        ]
    gone = edit(model, remove(getattr(anatomy.blocks[2], part))).model
    assert worst(outputs(gone), outputs(model)) <= 1e-6
    assert removed(gone)[part] == [2]


# Which parts are picked


def test_ties_go_to_the_lower_index_and_nan_is_nothing() -> None:
    assert most_similar([0.5, 0.9, 0.9, 0.1], 3) == [1, 2, 0]
    assert most_similar([math.nan, 0.1, math.nan, 0.2], 2) == [3, 1]
    assert most_similar([0.5], 0) == []
    for n in (-1, 3):
        with pytest.raises(InvalidInputError, match="valid values are 0 to 2"):
            most_similar([0.1, math.nan, 0.2], n)


@pytest.mark.parametrize("target", TARGETS)
def test_the_most_similar_parts_go(tiny: Any, preset: str, target: str) -> None:
    model = tiny(preset)
    anatomy = Anatomy.of(model)
    scores = calibrate(anatomy, data(model), [Similarity()])
    kinds = PARTS if target == "joint" else (target,)
    listed = [(s, kind, i) for kind in kinds for i, s in enumerate(scores.column(kind))]
    best = sorted(listed, key=lambda entry: -entry[0])[:3]
    decided = plan(model, method(n=3, target=target), data(model))
    assert decided.reasons["order"] == [f"{kind} {i}" for _, kind, i in best]
    for kind in ("attention", "mlp", "block"):
        assert decided.reasons["removed"][kind] == [i for _, k, i in best if k == kind]
        assert decided.reasons["scores"][kind] == scores.column(kind)
    assert decided.reasons["calibration"] == data(model).recipe
    json.dumps(decided.to_dict(), allow_nan=False)


def test_drop_norm_says_what_is_compared(tiny: Any) -> None:
    model = tiny("tiny-llama")
    bare = calibrate(Anatomy.of(model), data(), [Similarity(drop_norm=False)])
    decided = plan(model, method(n=1, drop_norm=False), data())
    assert decided.reasons["scores"]["attention"] == bare.column("attention")
    assert (
        decided.reasons["scores"]["attention"]
        != plan(model, method(n=1), data()).reasons["scores"]["attention"]
    )


def test_blocks_in_a_row(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    rows = [
        v["gaps"].tolist() for v in calibrate(Anatomy.of(model), data(model), [BlockDistance(4)])
    ]
    for n in (1, 2, 3):
        # Row b of the statistics ends at block b, so n blocks from b on end at b + n - 1.
        starts = {b: rows[b + n - 1][n - 1] for b in range(4 - n + 1)}
        best = max(starts, key=lambda b: starts[b])
        decided = plan(model, method(n=n, target="block", consecutive=True), data(model))
        assert decided.reasons["removed"]["block"] == list(range(best, best + n))
        applied = apply_plan(model, decided)
        assert applied.plain and len(Anatomy.of(applied.model).blocks) == 4 - n


def test_blocks_in_a_row_from_a_table() -> None:
    table = gap_table([[0.5, -math.inf], [0.7, 0.2], [0.7, 0.9]])
    assert table == [[0.5, 0.2], [0.7, 0.9], [0.7, -math.inf]]
    assert consecutive_blocks(table, 1) == [1], "a tie goes to the lower index"
    assert consecutive_blocks(table, 2) == [1, 2]
    assert consecutive_blocks(table, 0) == []
    for n in (-1, 4):
        with pytest.raises(InvalidInputError, match="valid values are 0 to 3"):
            consecutive_blocks(table, n)


@pytest.mark.parametrize("target", TARGETS)
def test_iterating_once_is_one_shot(tiny: Any, preset: str, target: str) -> None:
    model = tiny(preset)
    once = plan(model, method(n=1, target=target, mode="iterative"), data(model))
    assert once.edits == plan(model, method(n=1, target=target), data(model)).edits


@pytest.mark.parametrize("target", ["block", "joint"])
def test_iterating_scores_the_reduced_model_and_never_picks_twice(
    tiny: Any, preset: str, target: str
) -> None:
    model = tiny.copy(preset)
    before, modules = snapshot(model), list(model.modules())
    hooks = number_of_hooks(model)
    decided = plan(model, method(n=3, target=target, mode="iterative"), data(model))
    order = decided.reasons["order"]
    assert len(set(order)) == 3
    assert unchanged(model, before)
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert number_of_hooks(model) == hooks

    # By hand: what was picked is really taken out before the next score.
    reduced, names = model, {kind: list(range(4)) for kind in ("attention", "mlp", "block")}
    for step, picked in enumerate(order):
        anatomy = Anatomy.of(reduced)
        scores = calibrate(anatomy, data(model), [Similarity()])
        kinds = PARTS if target == "joint" else (target,)
        listed = [
            (score, f"{kind} {names[kind][i]}")
            for kind in kinds
            for i, score in enumerate(scores.column(kind))
            if not math.isnan(score)
        ]
        assert picked == max(listed, key=lambda entry: entry[0])[1], step
        kind, index = picked.split()
        here = names[kind].index(int(index))
        block = anatomy.blocks[here]
        part = block if kind == "block" else getattr(block, kind)
        reduced = edit(reduced, remove(part), check=False).model
        if kind == "block":
            for left in names.values():
                left.remove(int(index))


def test_an_iteration_that_was_stopped_goes_on(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    wanted = method(n=3, mode="iterative")
    first = wanted.plan(Anatomy.of(model), data(), directory=tmp_path)
    runs: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *seen: runs.append(1))
    again = wanted.plan(Anatomy.of(model), data(), directory=tmp_path)
    handle.remove()
    assert runs == [] and again.edits == first.edits and again.reasons == first.reasons


def test_a_failure_while_iterating_leaves_the_model_as_it_was(tiny: Any) -> None:
    class Stops:
        def phase(self, name: str, total: int) -> Any:
            if name.endswith("2 of 3"):
                raise KeyboardInterrupt
            from modwright.core.progress import SILENT

            return SILENT.phase(name, total)

    model = tiny.copy("tiny-llama")
    before, dense = snapshot(model), outputs(model)
    with pytest.raises(KeyboardInterrupt):
        plan(model, method(n=3, mode="iterative"), data(), progress=Stops())
    assert unchanged(model, before) and torch.equal(outputs(model), dense)


def test_scores_that_are_there_already_serve_many_decisions(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny("tiny-llama"))
    scores = calibrate(anatomy, data(), [Similarity(), BlockDistance(2)])
    for options in (
        {"n": 1},
        {"n": 2, "target": "mlp"},
        {"n": 4, "target": "joint"},
        {"n": 2, "target": "block", "consecutive": True},
    ):
        wanted = method(**options)
        found = wanted.plan_from(anatomy, scores)
        assert found.edits == wanted.plan(anatomy, data()).edits
    with pytest.raises(InvalidInputError, match="scores anew after each removal"):
        method(n=2, mode="iterative").plan_from(anatomy, scores)


def test_a_part_that_is_gone_already_is_not_counted(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    reduced = edit(model, remove(Anatomy.of(model).blocks[1].attention)).model
    decided = plan(reduced, method(n=3), data(model))
    assert sorted(decided.reasons["removed"]["attention"]) == [0, 2, 3]
    assert decided.reasons["scores"]["attention"][1] is None
    with pytest.raises(InvalidInputError, match="n=4, but only 0 to 3 attention parts can go"):
        plan(reduced, method(n=4), data(model))


# What is left


def test_nothing_dropped_is_the_same_model(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    for windows in (None, data(model)):
        applied = apply(model, method(n=0), windows)
        assert applied.plain and type(applied.model) is type(model)
        assert torch.equal(outputs(applied.model), outputs(model))
        assert applied.tensor_diff.removed == applied.tensor_diff.changed == ()


@pytest.mark.contract("B7")
@pytest.mark.parametrize("n", [1, 3])
def test_parameters_and_cache_shrink_by_the_formulas(tiny: Any, n: int) -> None:
    model = tiny("tiny-llama")
    c = model.config
    d, heads, kv = c.hidden_size, c.num_attention_heads, c.num_key_value_heads
    attention = 2 * d * heads * c.head_dim + 2 * d * kv * c.head_dim + d
    mlp = 3 * d * c.intermediate_size + d
    sizes = {"attention": attention, "mlp": mlp, "block": attention + mlp}
    dense = Anatomy.of(model).num_parameters
    for target, size in sizes.items():
        gone = Anatomy.of(apply(model, method(n=n, target=target), data()).model)
        assert gone.num_parameters == dense - n * size
        assert method(n=n, target=target).parameter_bounds(Anatomy.of(model)) == (
            n * size,
            n * size,
        )
        left = 4 if target == "mlp" else 4 - n
        assert kv_cache_bytes(gone, 100, batch=3) == 2 * left * kv * c.head_dim * 100 * 3 * 4
        assert stored_in_cache(gone.model, 100, 3) == kv_cache_bytes(gone, 100, batch=3)


@torch.no_grad()
def stored_in_cache(model: Any, length: int, batch: int) -> int:
    cache = model(torch.ones(batch, length, dtype=torch.long), use_cache=True).past_key_values
    held = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.numel() * t.element_size() for t in held)


@pytest.mark.parametrize("index", range(4))
def test_a_dropped_block_is_a_block_taken_out(tiny: Any, index: int) -> None:
    model, by_hand = tiny("tiny-llama"), tiny.copy("tiny-llama")
    del by_hand.model.layers[index]
    by_hand.config.num_hidden_layers = 3
    for slot, layer in enumerate(by_hand.model.layers):
        layer.self_attn.layer_idx = slot
    applied = edit(model, remove(Anatomy.of(model).blocks[index]))
    assert applied.plain and torch.equal(outputs(applied.model), outputs(by_hand))
    names = {name for name, _ in by_hand.named_parameters()}
    assert {name for name, _ in applied.model.named_parameters()} == names


DROPS = {
    "first and third": {"drop_attn_list": [0, 2], "drop_mlp_list": [3]},
    "all": {"drop_attn_list": [0, 1, 2, 3]},
    "a block": {"drop_attn_list": [2, 0], "drop_mlp_list": [3, 2]},
}


@pytest.mark.parametrize("drops", DROPS)
def test_what_is_left_decodes_and_comes_back(
    tiny: Any,
    preset: str,
    drops: str,
    tmp_path: Path,
    fresh_process: Callable[..., dict[str, Any]],
) -> None:
    """apply() compares cached with uncached decoding, one row of the batch padded on the left."""
    model = tiny(preset)
    applied = drop(model, DROPS[drops], tmp_path)
    assert applied.verification is not None and applied.verification.ok
    applied.model.save_pretrained(tmp_path / "saved")
    batch, out = tmp_path / "batch.safetensors", tmp_path / "out.safetensors"
    save_file(batch_of(model), batch)
    auto = tiny.auto_class(preset)
    answer = fresh_process(tmp_path / "saved", auto, batch=str(batch), out=str(out))
    assert "error" not in answer, answer
    with torch.no_grad():
        expected: Tensor = applied.model(**batch_of(model), return_dict=True)[0]
    assert torch.equal(load_file(out)["out"], expected)


@pytest.mark.parametrize("n", [1, 4])
def test_a_post_norm_may_go_with_its_part(tiny: Any, n: int) -> None:
    model = tiny("tiny-bert")
    kept = apply(model, method(n=n), data())
    gone = apply(model, method(n=n, drop_post_norm=True), data())
    sizes = [Anatomy.of(applied.model).num_parameters for applied in (kept, gone)]
    assert sizes[0] - sizes[1] == n * 2 * model.config.hidden_size
    assert worst(outputs(kept.model), outputs(gone.model)) > 1e-2


def test_no_attention_left_is_said(tiny: Any) -> None:
    model = tiny("tiny-llama")
    said = "mixes no tokens"
    assert said in plan(model, method(n=4), data()).notes[0]
    assert plan(model, method(n=3), data()).notes == ()
    assert plan(model, method(n=4, target="mlp"), data()).notes == ()
    assert plan(model, method(n=3, target="block"), data()).notes == ()


def test_no_attention_left_is_said_of_blocks_and_attentions_together(
    tiny: Any, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"drop_attn_list": [0, 1, 2, 3], "drop_mlp_list": [1]}))
    decided = plan(tiny("tiny-llama"), method(lists=str(path)))
    assert "mixes no tokens" in decided.notes[0]


# Words and numbers for people


def test_titles() -> None:
    assert method(n=4).title() == "drop 4 attentions"
    assert method(n=1, target="mlp").title() == "drop 1 MLP"
    assert method(n=2, target="joint", mode="iterative").title().endswith("MLPs one by one")
    assert method(n=3, target="block", consecutive=True).title() == "drop 3 blocks in a row"
    assert method(lists="/some/where/config.json").title() == "drop by the lists of config.json"
