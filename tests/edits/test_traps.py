"""The three ways to be silently wrong. Each test also shows what happens without the remedy.

(1) Cache slots that are not numbered anew: decoding reads the wrong past.
(2) An attention that asks another config which function to run: it may see the future.
(3) A stock class that loads an edited checkpoint: see test_reload.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, cache_utils

import modwright.edits.replay
from helpers import batch_of, edit, outputs, worst
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.edits import Verification, apply, keep_heads, remove, verify
from modwright.edits.plan import Plan
from modwright.edits.remodeled import _RemodeledConfig
from modwright.edits.replay import number_cache_layers, unfilled_cache_layers
from modwright.nn import GroupedAttention

TOLD = hasattr(cache_utils, "DummyLayer")
"""This transformers can be told of slots that stay empty."""


def without_first_attention(model: Any) -> Plan:
    anatomy = Anatomy.of(model)
    return Plan.of(anatomy, "test", remove(anatomy.blocks[0].attention))


def held(verification: Verification) -> dict[str, bool]:
    return {check.name: check.held for check in verification.checks}


# (1)


def test_survivors_take_the_first_slots(tiny: Any, decoder: str) -> None:
    model = apply(tiny(decoder), without_first_attention(tiny(decoder))).model
    blocks = Anatomy.of(model).blocks
    slots = [b.attention.module.layer_idx for b in blocks if b.attention is not None]
    if len(set(getattr(model.config, "layer_types", None) or [None])) == 1:
        assert slots == [0, 1, 2]
    # In a cache each kind of layer has slots of its own, and of each kind the first are filled.
    cached = DynamicCache(config=model.config).layers
    if TOLD:
        kept = [i for i, layer in enumerate(cached) if type(layer) is not cache_utils.DummyLayer]
        assert kept == sorted(slots)
    windows = [getattr(cached[slot], "sliding_window", None) for slot in slots]
    assert windows == [b.attention.shape.sliding_window for b in blocks if b.attention is not None]


def test_without_new_slots_verify_sees_wrong_decoding(
    tiny: Any, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = without_first_attention(tiny(decoder))
    monkeypatch.setattr(modwright.edits.replay, "number_cache_layers", lambda layers, config: None)
    if TOLD:  # the cache was told that the last slot stays empty
        with pytest.raises(VerificationError, match="it does not run: Dummy layer"):
            apply(tiny(decoder), plan)

    monkeypatch.setattr(_RemodeledConfig, "kv_sharing_modes", None)
    model = apply(tiny(decoder), plan, check=False).model
    seen = held(verify(model))
    assert not seen["cached decoding = uncached"]
    assert seen["causality"] and seen["finite outputs"]
    with pytest.raises(VerificationError, match="cached decoding = uncached does not hold"):
        apply(tiny(decoder), plan)


class Slot:
    """Stands for the module that owns a cache slot."""

    def __init__(self, layer: int) -> None:
        self.layer_idx = layer


def numbered(kept: list[int], types: list[str] | None) -> list[int]:
    config = type("Config", (), {"layer_types": types})()
    layers = [(i, Slot(i)) for i in kept]
    number_cache_layers(layers, config)
    return [slot.layer_idx for _, slot in layers]


@pytest.mark.contract("D3")
def test_slots_are_numbered_within_each_type_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = ["full", "sliding", "full", "sliding", "full", "sliding"]
    assert numbered([0, 1, 2], None) == [0, 1, 2]
    assert numbered([2, 4, 5], None) == [0, 1, 2]
    assert numbered([2, 4, 5], mixed) == [0, 2, 1]
    assert numbered([1, 3, 4], mixed) == [1, 3, 0]
    assert numbered([], mixed) == []
    monkeypatch.setattr(modwright.edits.replay, "_KNOWS_EMPTY_LAYERS", True)
    assert numbered([1, 3, 5], mixed) == [1, 3, 5]
    monkeypatch.setattr(modwright.edits.replay, "_KNOWS_EMPTY_LAYERS", False)
    with pytest.raises(
        InvalidInputError, match=r"all full layers would go.*keep one of layers \[0, 2, 4\]"
    ):
        numbered([1, 3, 5], mixed)


def test_the_cache_is_told_which_slots_stay_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modwright.edits.replay, "_KNOWS_EMPTY_LAYERS", True)
    mixed = ["full", "sliding", "full", "sliding"]
    assert unfilled_cache_layers([0, 1, 2, 3], None, 4) == []
    assert unfilled_cache_layers([1, 3], None, 4) == [2, 3]
    assert unfilled_cache_layers([1, 2, 3], mixed, 4) == [2]
    assert unfilled_cache_layers([1, 3], mixed, 4) == [0, 2]
    # Without any attention a slot is left that can say "nothing was seen".
    assert unfilled_cache_layers([], mixed, 4) == [1, 3]
    assert unfilled_cache_layers([], None, 4) == []
    assert unfilled_cache_layers([], ["sliding"] * 4, 4) == []


# (2)


def force_generic(model: Any) -> Any:
    """Uneven heads in block 1, so that a modwright attention stands there in every family."""
    attention = Anatomy.of(model).blocks[1].attention
    return edit(model, keep_heads(attention, range(1, attention.num_heads)), check=False).model


def generic_attentions(model: Any) -> list[GroupedAttention]:
    return [m for m in model.modules() if isinstance(m, GroupedAttention)]


def test_a_new_attention_holds_the_models_own_config(tiny: Any, preset: str, tmp_path: Any) -> None:
    import transformers

    model = force_generic(tiny(preset))
    model.save_pretrained(tmp_path)
    back = getattr(transformers, tiny.auto_class(preset)).from_pretrained(tmp_path)
    for live in (model, back, copy.deepcopy(model)):
        parts = generic_attentions(live)
        assert parts
        assert all(part.config is live.config for part in parts)
        live.set_attn_implementation("eager")
        assert all(part.config._attn_implementation == "eager" for part in parts)


def test_a_stock_attention_with_a_config_of_its_own_is_caught(tiny: Any) -> None:
    """What the remedy is for: a fresh config names no implementation, and no mask was made."""
    model = tiny.copy("tiny-llama")
    assert verify(model).ok
    model.model.layers[1].self_attn.config = tiny.config("tiny-llama")
    assert model.model.layers[1].self_attn.config._attn_implementation is None
    seen = held(verify(model))
    assert not seen["causality"]


def test_a_foreign_config_does_not_make_our_attention_see_the_future(
    tiny: Any, decoder: str
) -> None:
    """A second lock: the naive function, which runs then, masks by itself."""
    model = force_generic(tiny(decoder))
    expected = outputs(model)
    for part in generic_attentions(model):
        part.config = tiny.config(decoder)
    assert verify(model).ok
    assert worst(outputs(model), expected) <= 1e-5


def test_an_attention_that_runs_what_the_mask_was_not_made_for_is_caught(
    tiny: Any, decoder: str
) -> None:
    from transformers.models.llama.modeling_llama import eager_attention_forward

    model = force_generic(tiny(decoder))
    for part in generic_attentions(model):
        part.attend = eager_attention_forward
    assert not held(verify(model))["causality"]


# What else verify() sees


def test_verify_sees_numbers_that_are_not_finite(tiny: Any, dense_mlps: str) -> None:
    model = tiny.copy(dense_mlps)
    with torch.no_grad():
        Anatomy.of(model).blocks[3].mlp.down.module.weight[0, 0] = torch.inf
    report = verify(model)
    assert not report.ok
    assert "finite outputs does not hold" in report.failure
    assert "BROKEN" in str(report)


def test_verify_sees_padding_that_has_influence(tiny: Any) -> None:
    model = tiny.copy("tiny-bert")
    inner = model.encoder.layer[1].attention.self
    forward = inner.forward
    inner.forward = lambda hidden_states, attention_mask=None, **kw: forward(hidden_states, **kw)
    assert not held(verify(model))["padding has no influence"]


def test_verify_leaves_the_model_as_it_was(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset).train()
    before = copy.deepcopy(model.state_dict())
    generation = copy.deepcopy(getattr(model, "generation_config", None))
    state = torch.get_rng_state()
    assert verify(model).ok
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert getattr(model, "generation_config", None) == generation
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_verify_holds_for_short_contexts(tiny: Any) -> None:
    for length in (4, 16):
        assert verify(tiny("tiny-llama", max_position_embeddings=length)).ok


def test_verify_fits_into_the_learned_positions(tiny: Any) -> None:
    assert verify(tiny("tiny-gpt2", n_positions=24)).ok
    assert batch_of(tiny("tiny-gpt2", n_positions=10))["input_ids"].shape[1] == 10
    assert verify(tiny("tiny-gpt2", n_positions=10)).ok
