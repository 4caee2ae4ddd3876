"""A slot of a cache that holds a state: what transformers asks of it, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MambaConfig, StaticCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from modwright.core.compat.torch import tensors_of
from modwright.core.errors import InvalidInputError
from modwright.edits.cache_state import StateLayer, StockState, state_layer


def filled(sequences: int = 3) -> StateLayer:
    layer = StateLayer()
    rows = torch.arange(float(sequences))
    layer.write(
        {"a": (rows.view(-1, 1, 1).expand(-1, 2, 4), rows), "note": "kept"}, sequences, tokens=5
    )
    return layer


def rows_of(layer: StateLayer) -> list[list[float]]:
    return [
        tensor.flatten(1)[:, 0].tolist() if tensor.dim() > 1 else tensor.tolist()
        for tensor in tensors_of(layer.state)
    ]


def test_it_is_a_layer_with_nothing_left_abstract() -> None:
    assert isinstance(StateLayer(), CacheLayerMixin) and not StateLayer.__abstractmethods__
    layer = StateLayer()
    assert layer.get_seq_length() == 0 and layer.get_mask_sizes(4) == (4, 0)
    assert layer.keys is None and layer.values is None
    assert not (layer.is_sliding or layer.is_compileable or layer.is_croppable)
    assert layer.get_max_length() == layer.get_max_cache_shape() == -1


def test_it_counts_tokens_as_attentions_do() -> None:
    layer = filled()
    layer.write(layer.state, 3, tokens=2)
    assert layer.get_seq_length() == 7 and layer.get_mask_sizes(3) == (10, 0)
    assert layer.batch_size == layer.max_batch_size == 3
    assert not hasattr(StateLayer(), "batch_size")


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])), [2.0, 0.0, 0.0]),
        (lambda layer: layer.batch_repeat_interleave(2), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]),
        (lambda layer: layer.batch_select_indices(torch.tensor([2, 1])), [2.0, 1.0]),
        (lambda layer: layer.batch_select_indices(torch.tensor([True, False, True])), [0.0, 2.0]),
        (lambda layer: (layer.offload(), layer.prefetch()), [0.0, 1.0, 2.0]),
    ],
)
def test_rows_are_moved_in_every_tensor_of_the_tree(change: Any, rows: list[float]) -> None:
    layer = filled()
    change(layer)
    assert rows_of(layer) == [rows, rows]
    assert layer.state["note"] == "kept" and layer.seen == 5
    change(StateLayer())  # nothing is there yet


def test_a_reset_slot_is_as_new() -> None:
    layer = filled()
    layer.reset()
    assert layer.state is None and layer.seen == 0 and not layer.is_initialized
    assert vars(copy.deepcopy(filled())).keys() == vars(filled()).keys()


def test_what_a_state_cannot_do_is_refused_in_one_line() -> None:
    for call in (
        lambda: filled().crop(-1),
        lambda: filled().crop(0),
        lambda: filled().update(torch.zeros(1), torch.zeros(1)),
        lambda: filled().check_batch(2),
        lambda: filled().write(torch.zeros(2, 3), 3, 1),
        lambda: filled().write([torch.zeros(3), torch.zeros(())], 3, 1),
    ):
        with pytest.raises(InvalidInputError) as refusal:
            call()
        assert "\n" not in str(refusal.value)
    filled().check_batch(3)
    StateLayer().check_batch(9)


def config(**fields: Any) -> LlamaConfig:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8}
    return LlamaConfig(num_hidden_layers=3, **sizes, **fields)


def keys(length: int = 4) -> torch.Tensor:
    return torch.zeros(2, 2, length, 4)


def test_it_takes_the_place_of_what_waits_in_the_slot() -> None:
    for cache in (
        DynamicCache(),
        DynamicCache(config=config()),
        StaticCache(config=config(), max_cache_len=8),
    ):
        cache.update(keys(), keys(), 0)
        placed = state_layer(cache, 2)
        assert cache.layers[2] is placed is state_layer(cache, 2)
        assert len(cache.layers) == 3 and not isinstance(cache.layers[1], StateLayer)
        assert int(cache.get_seq_length()) == 4
        static = isinstance(cache, StaticCache)
        assert getattr(placed, "max_cache_len", None) == (8 if static else None)


def test_later_attentions_fill_slots_before_it() -> None:
    cache = DynamicCache()
    state_layer(cache, 2).write(torch.zeros(2, 1), 2, tokens=4)
    cache.update(keys(), keys(), 0)
    assert [type(layer) for layer in cache.layers] == [DynamicLayer, DynamicLayer, StateLayer]
    assert cache.get_seq_length() == cache.get_seq_length(2) == 4


def test_caches_of_other_models_are_refused() -> None:
    cache = DynamicCache(config=config())
    cache.update(keys(), keys(), 2)
    with pytest.raises(InvalidInputError, match="keys and values in slot 2"):
        state_layer(cache, 2)
    with pytest.raises(InvalidInputError, match="3 slots, and a state of this model is in slot 3"):
        state_layer(cache, 3)
    static = StaticCache(config=config(), max_cache_len=8)
    static.update(keys(), keys(), 1)
    with pytest.raises(InvalidInputError, match="keys and values in slot 1"):
        state_layer(static, 1)


def test_a_cache_without_slots_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a tuple has no slots for recurrent states"):
        state_layer((), 0)


def test_static_windows_are_refused() -> None:
    windows = config(sliding_window=3, layer_types=["sliding_attention"] * 3)
    with pytest.raises(InvalidInputError, match="static cache with sliding windows"):
        state_layer(StaticCache(config=windows, max_cache_len=8), 2)


# Slots that transformers made for its own recurrent layers


def stock_cache(slots: int = 2) -> DynamicCache:
    return DynamicCache(config=MambaConfig(hidden_size=4, num_hidden_layers=slots))


def stored(cache: DynamicCache, slot: int, name: str) -> torch.Tensor:
    """What transformers reads there: a tensor, or since 5.24 one of several."""
    found: Any = getattr(cache.layers[slot], name)
    tensor: torch.Tensor = found[0] if isinstance(found, dict) else found
    return tensor


def mamba_state(sequences: int = 3, scale: float = 1.0) -> dict[str, torch.Tensor]:
    rows = scale * torch.arange(1.0, sequences + 1).view(-1, 1, 1)
    return {"conv": rows.expand(-1, 2, 4).clone(), "ssm": rows.expand(-1, 2, 5).clone()}


def test_a_slot_of_a_stock_recurrent_layer_keeps_its_layer() -> None:
    cache = stock_cache()
    before = cache.layers[1]
    slot = state_layer(cache, 1)
    assert isinstance(slot, StockState) and slot.state is None
    slot.write(mamba_state(), 3, tokens=5)
    assert cache.layers[1] is before
    assert torch.equal(stored(cache, 1, "conv_states"), mamba_state()["conv"])
    assert torch.equal(stored(cache, 1, "recurrent_states"), mamba_state()["ssm"])
    held = slot.state
    assert held is not None and set(held) == {"conv", "ssm"}
    again = state_layer(cache, 1)
    again.write(mamba_state(scale=2.0), 3, tokens=1)
    assert torch.equal(stored(cache, 1, "recurrent_states"), mamba_state(scale=2.0)["ssm"])
    assert held["ssm"].data_ptr() == stored(cache, 1, "recurrent_states").data_ptr(), "in its place"


def test_rows_move_and_a_reset_forgets() -> None:
    cache = stock_cache()
    state_layer(cache, 0).write(mamba_state(), 3, tokens=5)
    cache.layers[0].reorder_cache(torch.tensor([2, 0, 0]))
    held = state_layer(cache, 0).state
    assert held is not None and held["ssm"][:, 0, 0].tolist() == [3.0, 1.0, 1.0]
    cache.layers[0].reset()
    assert state_layer(cache, 0).state is None
    state_layer(cache, 0).write(mamba_state(2), 2, tokens=5)
    assert stored(cache, 0, "conv_states").shape == (2, 2, 4), "another batch after a reset"


def test_a_state_of_another_form_takes_the_slot() -> None:
    cache = stock_cache()
    state_layer(cache, 0).write({"sum": torch.ones(3, 2)}, 3, tokens=5)
    assert isinstance(cache.layers[0], StateLayer) and cache.layers[0].seen == 5
    assert state_layer(cache, 0) is cache.layers[0]


def test_another_batch_than_a_stock_slot_holds_is_refused() -> None:
    cache = stock_cache()
    slot = state_layer(cache, 0)
    slot.check_batch(7)
    slot.write(mamba_state(), 3, tokens=5)
    slot.check_batch(3)
    with pytest.raises(InvalidInputError, match="the states of 3 sequences, and the batch has 2"):
        slot.check_batch(2)


def test_a_stock_slot_lets_gradients_through_two_steps() -> None:
    cache, first = stock_cache(), mamba_state()
    first["ssm"].requires_grad_()
    slot = state_layer(cache, 0)
    slot.write(first, 3, tokens=5)
    held = slot.state
    assert held is not None
    later = {"conv": held["conv"], "ssm": held["ssm"] ** 2}
    slot.write(later, 3, tokens=1)
    stored(cache, 0, "recurrent_states").sum().backward()
    assert torch.equal(first["ssm"].grad, 2 * first["ssm"].detach())
