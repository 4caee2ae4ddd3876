from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_recurrent import ToyRecurrent, toys
from transformers import DynamicCache

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import cache_keyword
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.cost import activation_bytes, count, kv_cache_bytes, state_bytes

LENGTH, BATCH = 10, 2


def held(cache: DynamicCache) -> int:
    filled = [layer for layer in cache.layers if layer.keys is not None]
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in filled
        for tensor in (layer.keys, layer.values)
    )


def run(model: Any, length: int = LENGTH) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.full((BATCH, length), 7), **{cache_keyword(model): cache})
    return cache


def test_the_cache_holds_exactly_what_was_counted(model: Any) -> None:
    anatomy = Anatomy.of(model)
    counted = kv_cache_bytes(anatomy, LENGTH, BATCH)
    assert count(model, length=LENGTH, batch=BATCH).kv_bytes * BATCH == counted
    if not anatomy.family.is_causal():
        assert counted == 0
        return
    cache = run(model)
    assert counted == held(cache)
    attentions = sum(block.attention is not None for block in anatomy.blocks)
    assert sum(layer.keys is not None for layer in cache.layers) == attentions


@pytest.mark.parametrize("length", [3, 5, 6, 7, 20])
def test_a_sliding_window_bounds_the_cache(make: Any, length: int) -> None:
    model = make("tiny-llama", sliding_window=6)
    assert kv_cache_bytes(Anatomy.of(model), length, BATCH) == held(run(model, length))


def test_the_cache_follows_the_dtype(make: Any) -> None:
    model = make("tiny-gpt-neox").to(torch.bfloat16)
    anatomy = Anatomy.of(model)
    half = kv_cache_bytes(anatomy, LENGTH, BATCH)
    assert half == held(run(model))
    assert kv_cache_bytes(anatomy, LENGTH, BATCH, dtype="float32") == 2 * half
    assert kv_cache_bytes(anatomy, LENGTH, BATCH, dtype=torch.float64) == 4 * half


def test_refusals_name_what_is_valid(make: Any) -> None:
    anatomy = Anatomy.of(make("tiny-llama"))
    with pytest.raises(InvalidInputError, match="length must be a whole number, 1 or more, not 0"):
        kv_cache_bytes(anatomy, 0)
    with pytest.raises(InvalidInputError, match="batch must be a whole number, 1 or more, not -1"):
        activation_bytes(anatomy, 4, batch=-1)
    with pytest.raises(
        InvalidInputError, match=r"unknown dtype 'float23'; valid values: .*'float32'"
    ):
        kv_cache_bytes(anatomy, 4, dtype="float23")


class Peak(TorchDispatchMode):
    """Follows the bytes of all tensors that operators make, from birth to release."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        weights = [*model.parameters(), *model.buffers()]
        self.known = {tensor.untyped_storage()._cdata for tensor in weights}
        self.live = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.most = max(self.most, self.live)
        return result

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_a_floor_of_what_is_alive(dense: Any, attention: str) -> None:
    dense.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(0)
    inputs = Anatomy.of(dense).family.inputs().random(BATCH, 64, generator)
    with torch.no_grad(), Peak(dense) as peak:
        dense(**inputs, **({"use_cache": False} if dense.can_generate() else {}))
    dense.set_attn_implementation("sdpa")
    counted = activation_bytes(_like(dense, attention), 64, BATCH)
    assert counted <= peak.most <= 2.5 * counted


def _like(model: Any, attention: str) -> Anatomy:
    with torch.device("meta"):
        return Anatomy.of(type(model)._from_config(model.config, attn_implementation=attention))


def test_activations_of_a_known_size(make: Any) -> None:
    anatomy = Anatomy.of(make("tiny-llama"))
    gated = 48 + 48 + 3 * 96
    assert activation_bytes(anatomy, 8, batch=3) == 3 * 8 * 4 * gated
    wide = Anatomy.of(make("tiny-llama", vocab_size=1000))
    assert activation_bytes(wide, 8) == 8 * 4 * (48 + 1000)
    eager = Anatomy.of(make("tiny-llama", attn_implementation="eager"))
    attention = 48 + 48 + 72 + 24 + 24 + 72 + 2 * 6 * 100
    assert activation_bytes(eager, 100) == 100 * 4 * attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_is_measured_where_its_component_does_not_say_its_size(
    make: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    source = make("tiny-llama").to(dtype)
    anatomy = Anatomy.of(edit(source, toys(Anatomy.of(source), (0, 2)), check=False).model)
    said = [state_bytes(anatomy, batch=3, dtype=given) for given in (None, "float64")]
    assert said[0] == 2 * 3 * ToyRecurrent(48).state_bytes(dtype)
    monkeypatch.delattr(ToyRecurrent, "state_bytes")
    assert [state_bytes(anatomy, batch=3, dtype=given) for given in (None, "float64")] == said
    assert {count(anatomy, length=n).state_bytes for n in (1, 9)} == {said[0] // 3}
    monkeypatch.setattr(ToyRecurrent, "forward", lambda self, x, **given: x[5])
    with pytest.raises(UnsupportedArchitecture, match=r"blocks.0.attention: .* `state_bytes"):
        state_bytes(anatomy)
