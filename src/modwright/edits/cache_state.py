"""A cache slot that holds the state of a recurrent layer, beside slots of keys and values.

transformers' caches are lists of layers, one slot for each layer of a model. Attentions append keys
and values to theirs; a recurrent component keeps a tree of tensors whose size does not depend on
the length. Its slot tells the number of tokens that went into it, as the slots of attentions do, so
positions and masks are right whichever slot is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    LinearAttentionLayer,
    StaticSlidingWindowLayer,
)

from modwright.core.compat.torch import on_tensors_of, tensors_of
from modwright.core.errors import InvalidInputError

__all__ = ["StateLayer", "StockState", "state_layer"]


_STOCK_NAMES = {"conv": "conv_states", "ssm": "recurrent_states"}
"""Tensors of a state -> what transformers' layers for recurrent layers call them."""


class StateLayer(CacheLayerMixin):
    """The state of one recurrent layer in a cache of transformers.

    Attributes:
        state: tree of tensors (B, ...), sequences in the first axis; None before the first tokens.
        seen: tokens of each sequence that went into it, padding included.
        max_cache_len: tokens for which a static cache was made; no attribute in other caches. Older
            versions of transformers ask all layers of a static cache for it.

    Example:
        >>> layer = StateLayer()
        >>> layer.write({"sum": torch.arange(2.0).view(2, 1)}, sequences=2, tokens=5)
        >>> layer.reorder_cache(torch.tensor([1, 1]))
        >>> layer.get_seq_length(), layer.state["sum"].tolist()
        (5, [[1.0], [1.0]])
    """

    max_cache_len: int
    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None
        self.seen = 0
        self.device: torch.device | None = None

    def write(self, state: Any, sequences: int, tokens: int) -> None:
        """Takes the state after ``tokens`` more of each sequence.

        Raises:
            InvalidInputError: a tensor of it has not the sequences in its first axis.
        """
        held = tensors_of(state)
        odd = [tuple(t.shape) for t in held if t.shape[:1] != (sequences,)]
        if odd:
            raise InvalidInputError(
                f"every tensor of a state has the {sequences} sequences in its first axis, and one "
                f"has the shape {odd[0]}"
            )
        self.state, self.seen, self.is_initialized = state, self.seen + tokens, True
        self.device = held[0].device if held else None

    def check_batch(self, sequences: int) -> None:
        """Refuses a batch of another size than that of the tokens before."""
        held = {tensor.shape[0] for tensor in tensors_of(self.state)}
        if held - {sequences}:
            raise InvalidInputError(
                f"the cache holds the states of {min(held)} sequences, and the batch has "
                f"{sequences}; start with a new cache, or select its rows with batch_select_indices"
            )

    @property
    def batch_size(self) -> int:
        """Sequences; AttributeError before the first tokens, as transformers asks ``hasattr``."""
        if not (held := tensors_of(self.state)):
            raise AttributeError("no state yet")
        return int(held[0].shape[0])

    @property
    def max_batch_size(self) -> int:
        return self.batch_size

    # What transformers asks of a layer

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the component makes its first state."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidInputError(
            "the cache holds a recurrent state where an attention of this model keeps its keys and "
            "values: it is the cache of another model"
        )

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is none."""
        return -1

    def get_max_cache_shape(self) -> int:
        """As :meth:`get_max_length`, which older versions of transformers call so."""
        return -1

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise InvalidInputError(
            "a recurrent state cannot be rolled back to fewer tokens, so a cache that holds one is "
            "not cropped, and takes no part in assisted generation"
        )

    def reset(self) -> None:
        self.state, self.seen, self.is_initialized = None, 0, False

    def offload(self) -> None:
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda tensor: tensor[indices, ...])

    def _map(self, function: Any) -> None:
        self.state = on_tensors_of(self.state, function)


class StockState:
    """A slot that transformers made for a recurrent layer of its own, as a state is read and kept.

    A state of a window and a recurrence, ``conv`` and ``ssm``, stays in transformers' layer: the
    cache may go on in the stock model, or come from there. A state of another form takes the slot.

    Attributes:
        seen: 0, as such a layer does not tell; masks are read from their end.
    """

    seen = 0

    def __init__(self, cache: Any, slot: int) -> None:
        self.cache, self.slot, self.layer = cache, slot, cache.layers[slot]

    @property
    def state(self) -> dict[str, Tensor] | None:
        """None before the first tokens."""
        if not self._held("has_previous_state"):
            return None
        return {name: self._held(held) for name, held in _STOCK_NAMES.items()}

    def _held(self, name: str) -> Any:
        """An attribute of the layer: since transformers 5.24 it has one for each of some states."""
        held = getattr(self.layer, name)
        return held[0] if isinstance(held, dict) else held

    def _hold(self, name: str, value: Any) -> None:
        held = getattr(self.layer, name)
        if isinstance(held, dict):
            held[0] = value
        else:
            setattr(self.layer, name, value)

    def check_batch(self, sequences: int) -> None:
        """As that of :class:`StateLayer`."""
        held = StateLayer()
        held.state = self.state
        held.check_batch(sequences)

    def write(self, state: Any, sequences: int, tokens: int) -> None:
        """As that of :class:`StateLayer`; what was there is written over in place."""
        if not (isinstance(state, Mapping) and state.keys() == _STOCK_NAMES.keys()):
            placed = self.cache.layers[self.slot] = StateLayer()
            placed.write(state, sequences, tokens)
            return
        if not self._held("has_previous_state"):
            given = {name: state[own] for own, name in _STOCK_NAMES.items()}
            self.layer.lazy_initialization(**given)
            self._hold("has_previous_state", True)
        for own, name in _STOCK_NAMES.items():
            if torch.is_grad_enabled() and state[own].requires_grad:
                self._hold(name, state[own])  # what backward needs stays as it is
            else:
                self._held(name).copy_(state[own])


def state_layer(cache: Any, slot: int) -> StateLayer | StockState:
    """The state in a slot of a cache; at the first call it takes the place of what waits there.

    A slot that transformers made for a recurrent layer keeps its layer, see :class:`StockState`.

    Raises:
        InvalidInputError: the cache has no such slot, or holds keys and values there, so it is of
            another model; it has no slots at all; or it is a static cache with sliding windows.

    Example:
        >>> from transformers import DynamicCache
        >>> cache = DynamicCache()
        >>> state_layer(cache, 2).write(torch.zeros(1, 3), sequences=1, tokens=4)
        >>> cache.layers, state_layer(cache, 2).seen
        ([DynamicLayer, DynamicLayer, StateLayer], 4)
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise InvalidInputError(
            f"a {type(cache).__name__} has no slots for recurrent states; leave it out, or give a "
            "DynamicCache"
        )
    while len(layers) <= slot:
        if cache.layer_class_to_replicate is None:
            raise InvalidInputError(
                f"the cache has {len(layers)} slots, and a state of this model is in slot {slot}: "
                "it is the cache of another model"
            )
        layers.append(cache.layer_class_to_replicate())
    found = layers[slot]
    if isinstance(found, StateLayer):
        return found
    if isinstance(found, LinearAttentionLayer) and not isinstance(found, CacheLayerMixin):
        return StockState(cache, slot)
    if any(isinstance(layer, StaticSlidingWindowLayer) for layer in layers):
        raise InvalidInputError(
            "a static cache with sliding windows cannot hold recurrent states beside them; leave "
            "cache_implementation out"
        )
    if getattr(found, "keys", None) is not None and _has_tokens(found):
        raise InvalidInputError(
            f"the cache holds keys and values in slot {slot}, where this model keeps a recurrent "
            "state: it is the cache of another model"
        )
    placed = layers[slot] = StateLayer()
    if hasattr(found, "max_cache_len"):
        placed.max_cache_len = found.max_cache_len
    return placed


def _has_tokens(layer: Any) -> bool:
    """Not asked where a graph is traced: a static layer tells its length by a tensor."""
    return not torch.compiler.is_compiling() and int(layer.get_seq_length()) > 0
