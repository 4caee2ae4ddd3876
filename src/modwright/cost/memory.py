"""Bytes that a run needs beside the weights: the key/value cache and the activations.

Axes: T positions of a sequence, d width, H query heads, K key/value heads, I intermediate width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache

from modwright.anatomy import Anatomy, Block
from modwright.anatomy.views import Sublayer
from modwright.core.compat.torch import tensors_of
from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import UnsupportedArchitecture, first_line, unknown_name
from modwright.core.macs import to_meta
from modwright.core.modes import set_eval
from modwright.cost.macs import at_least
from modwright.cost.meta_trace import MetaTrace, trace_on_meta
from modwright.edits.hf_adapters import keeps_state

__all__ = ["activation_bytes", "cached_positions", "kv_cache_bytes", "part_state_bytes"]
__all__ += ["state_bytes"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def cached_positions(anatomy: Anatomy, length: int) -> dict[str, int]:
    """How many of ``length`` positions each attention keeps in its cache, by its address.

    An attention with a window of w positions keeps the last w - 1. What keeps no keys (encoders,
    removed attentions) is not listed.
    """
    holders = [(block, part) for block, part in _sublayers(anatomy) if part.kv_bytes(1)]
    if not holders:
        return {}
    slots = DynamicCache(config=anatomy.config).layers
    kept = {}
    for block, part in holders:
        slot = getattr(anatomy.family.cache_layer_owner(block.module), "layer_idx", None)
        window = None if slot is None else getattr(slots[slot], "sliding_window", None)
        kept[part.address] = length if window is None else min(length, window - 1)
    return kept


def kv_cache_bytes(
    anatomy: Anatomy, length: int, batch: int = 1, dtype: torch.dtype | str | None = None
) -> int:
    """Bytes of the key/value cache after ``length`` positions of ``batch`` sequences; exact.

    Each attention holds K (Dqk + Dv) numbers per position. Encoders and removed attentions hold 0.

    Args:
        dtype: of the cached numbers; None for that of the weights.

    Raises:
        InvalidInputError: ``length`` or ``batch`` below 1, or an unknown dtype.

    Example:
        >>> import modwright
        >>> anatomy = modwright.Anatomy.of(modwright.open("preset:tiny-llama").model)
        >>> kv_cache_bytes(anatomy, length=100)  # 4 layers, 2 heads, 12 + 12 channels, float32
        76800
    """
    at_least(1, length=length, batch=batch)
    wanted, kept = _named_dtype(dtype), cached_positions(anatomy, length)
    parts = {part.address: part for _, part in _sublayers(anatomy)}
    return batch * sum(parts[address].kv_bytes(kept[address], wanted) for address in kept)


def state_bytes(anatomy: Anatomy, batch: int = 1, dtype: torch.dtype | str | None = None) -> int:
    """Bytes of what recurrent mixers keep of ``batch`` sequences, however long these are.

    As a component says with ``state_bytes(dtype)``, else those of a state that it makes without
    numbers.

    Args:
        dtype: of the kept numbers; None for that of the weights.

    Raises:
        InvalidInputError: ``batch`` below 1, or an unknown dtype.
        UnsupportedArchitecture: a component neither says it nor runs by itself.

    Example:
        >>> import modwright
        >>> state_bytes(modwright.open("preset:tiny-llama").anatomy)  # keys and values are no state
        0
    """
    at_least(1, batch=batch)
    wanted = _named_dtype(dtype)
    return batch * sum(part_state_bytes(part, wanted) for _, part in _sublayers(anatomy))


def part_state_bytes(part: Sublayer, dtype: torch.dtype | None = None) -> int:
    """Bytes of the state that a part keeps of one sequence; 0 where it keeps none.

    Raises:
        UnsupportedArchitecture: as :func:`state_bytes`.
    """
    own, module = part.state_bytes(dtype), part.module
    if own or not keeps_state(module):
        return own
    alone: Any = set_eval(to_meta(module))
    alone.layer_idx, cache = 0, DynamicCache()
    try:
        alone = alone if dtype is None else alone.to(dtype)
        near = next(alone.parameters(), torch.empty(0, device="meta"))
        alone(near.new_zeros(1, 1, _width_of(part)), cache=cache)
    except Exception as error:  # whatever a component raises when it is called alone
        raise UnsupportedArchitecture(
            f"{part.address}: a {type(module).__name__} does not run by itself, so the size of its "
            f"state is not known ({first_line(error)}); give it a method `state_bytes(dtype)`"
        ) from None
    return sum(tensor.nbytes for tensor in tensors_of(cache.layers[0].state))


def _width_of(part: Sublayer) -> int:
    """Channels of the stream: the part's own word for it, or its norm's."""
    own = getattr(part.module, "hidden_size", None)
    norm = {} if part.norm is None else part.norm.parameters()
    return own if isinstance(own, int) else len(norm.get("weight", ()))


def _named_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    found: torch.dtype | None = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def _sublayers(anatomy: Anatomy) -> Iterator[tuple[Block, Sublayer]]:
    return ((block, part) for block in anatomy.blocks for _, part in block.sublayers())


def activation_bytes(
    anatomy: Anatomy, length: int, batch: int = 1, trace: MetaTrace | None = None
) -> int:
    """Bytes of the activations that a forward pass without gradient cannot do without.

    Numbers per position; the largest of these sets counts, times positions and bytes per number:

    - while an attention runs: d (stream) + d (its normalized input; not in a post-norm block)
      + H Dqk + K (Dqk + Dv) (queries, keys, values) + H Dv (the mix), and with eager attention
      + 2 H T (scores and weights);
    - while an MLP runs: d + d (as above) + 2 I, or 3 I when it is gated (gate, up, product), and
      in a parallel block + d (what the attention returned); where only the chosen of N experts are
      computed, one after the other, the mean part of that, k / N^2; in a mixture of E experts with
      k at work, 3 I k / E + E;
    - at the head: d + V (logits of every position).

    Of models that are counted by running: what the greediest module reads and returns, from a
    pass that was observed already, or from one more. It is a floor: temporaries of an
    implementation (rotated copies, masks) come on top; cache and weights count elsewhere.

    Raises:
        InvalidInputError: ``length`` or ``batch`` below 1.
    """
    at_least(1, length=length, batch=batch)
    item = next(anatomy.model.parameters()).dtype.itemsize
    trace = trace or trace_on_meta(anatomy)
    if trace is not None:
        return batch * trace.largest * item
    length = anatomy.family.inputs().positions(length)
    width = anatomy.hidden_size
    scores = length if attention_implementation(anatomy.config) == "eager" else 0
    sets = [width]
    for block, part in _sublayers(anatomy):
        if own := part.activation_width(scores):
            reads = width * (1 if block.norms_write else 2)
            sets.append(reads + own + _beside(block, part, width))
    if "head" in anatomy.outer and (logits := anatomy.outer["head"].activation_width()):
        sets.append(width + logits)
    return batch * length * max(sets) * item


def _beside(block: Block, part: Sublayer, width: int) -> int:
    """What the attention of a parallel block returned, while the MLP runs."""
    first = block.at("attention")
    waits = first is not None and first is not part and first.activation_width() > 0
    return width if waits and block.layout == "parallel" else 0
