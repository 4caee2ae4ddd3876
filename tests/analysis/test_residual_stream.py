"""The share of the residual stream that is its mean: against the definition, and beside chance."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from helpers import batch_of, snapshot, unchanged
from models.tiny import TINY
from models.tiny import tiny as tiny_classifier
from modwright.analysis import stream_mean
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.data.text import from_sequences
from modwright.surgery import apply, make_method


def test_it_is_the_mean_square_over_the_energy(tiny: Any, preset: str) -> None:
    """From the hidden states that the model itself gives out, padding left out."""
    model = tiny(preset)
    before, batch = snapshot(model), batch_of(model)
    found = stream_mean(model, batch)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    blocks = len(Anatomy.of(model).blocks)
    assert len(found.shares) == blocks + 1
    mask = batch.get("attention_mask", torch.ones(states[0].shape[:2])).bool()
    assert found.positions == int(mask.sum())
    for share, state in zip(found.shares, states[:blocks]):
        x = state[mask].double()
        variance = x.var(-1, correction=0)
        truth = (x.mean(-1).square() / (x.mean(-1).square() + variance)).mean()
        assert share == pytest.approx(float(truth), rel=1e-9)
    assert found.by_chance == 1 / Anatomy.of(model).hidden_size
    assert unchanged(model, before) and not any(m._forward_pre_hooks for m in model.modules())


def by_hand(model: Any, batch: dict[str, Any]) -> list[float]:
    """The share before each block and behind the last, from hooks of this test's own."""
    blocks = [block.module for block in Anatomy.of(model).blocks]
    passed: list[list[Any]] = [[] for _ in range(len(blocks) + 1)]

    def keep(index: int, value: Any) -> None:
        x = (value[0] if isinstance(value, tuple) else value).double()
        x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x  # maps are (B, C, H, W)
        mean, variance = x.mean(-1), x.var(-1, correction=0)
        passed[index].append((mean.square() / (mean.square() + variance)).flatten())

    handles = [
        module.register_forward_pre_hook(lambda m, args, i=i: keep(i, args[0]))
        for i, module in enumerate(blocks)
    ]
    last = len(blocks)
    handles.append(blocks[-1].register_forward_hook(lambda m, args, out: keep(last, out)))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return [float(torch.cat(found).mean()) for found in passed]


@pytest.mark.parametrize("kind", sorted(TINY.keys() - {"craft"}))
def test_fault_A4_channels_are_found_in_feature_maps(kind: str) -> None:
    """Also where stages differ in width and in the number of their positions."""
    model = tiny_classifier(kind)
    if kind == "residual_network":  # it has no attention and no MLP
        with pytest.raises(UnsupportedArchitecture, match="no family for model type"):
            stream_mean(model, {})
        return
    batch = batch_of(model)
    found = stream_mean(model, batch)
    assert found.shares == pytest.approx(by_hand(model, batch), rel=1e-6)
    assert len(found.widths) == len(found.shares) and found.by_chance == 1 / found.widths[0]
    assert ("chance" in str(found).splitlines()[1]) == (len(set(found.widths)) > 1)


def test_a_stream_of_noise_has_what_chance_gives(tiny: Any) -> None:
    """The null: the ones are a direction like any other."""
    model = tiny.copy("tiny-gpt2")
    anatomy = Anatomy.of(model)
    drawn = torch.Generator().manual_seed(0)
    anatomy.write("embed.weight", torch.randn(128, 48, generator=drawn))
    anatomy.write("positions.weight", torch.randn(256, 48, generator=drawn))
    ids = torch.randint(0, 128, (20, 200), generator=drawn)
    share = stream_mean(model, {"input_ids": ids}).shares[0]
    assert share == pytest.approx(1 / 48, rel=0.1)


def test_a_stream_without_one_coordinate_gets_it_back(tiny: Any) -> None:
    model = tiny("tiny-gpt2", dtype=torch.float64)
    small = apply(model, make_method("pre_rmsnorm", {"form": "crms"})).model
    found = stream_mean(small, batch_of(model))
    assert max(found.shares) < 1e-25
    assert found.by_chance == 1 / 48


def test_windows_of_text_are_added_up(tiny: Any) -> None:
    model = tiny("tiny-opt")
    rows = [torch.arange(3, 19), torch.arange(30, 46), torch.arange(60, 76)]
    together = stream_mean(model, from_sequences(rows, 1, batch_size=3))
    apart = stream_mean(model, from_sequences(rows, 1, batch_size=1))
    assert together.positions == apart.positions == 48
    assert together.shares == pytest.approx(apart.shares, rel=1e-4)


def test_it_is_told_in_numbers_and_words(tiny: Any) -> None:
    found = stream_mean(Anatomy.of(tiny("tiny-vit")), batch_of(tiny("tiny-vit")))
    assert json.loads(json.dumps(found.to_dict()))["shares"] == list(found.shares)
    lines = str(found).splitlines()
    assert len(lines) == 6 and "34 positions" in lines[0] and "behind the blocks" in lines[-1]


def test_without_a_batch_there_is_nothing_to_say(tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match="there is no batch"):
        stream_mean(tiny("tiny-gpt2"), [])
