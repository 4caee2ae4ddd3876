"""Bytes that a run needs beside the weights: the key/value cache and the activations.

Axes: T positions of a sequence, d width, H query heads, K key/value heads, I intermediate width,
V vocabulary.
"""

from __future__ import annotations

import torch

from modwright.anatomy import Anatomy, Block, Embedding, MixtureOfExperts, Mlp
from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import unknown_name
from modwright.cost.macs import at_least
from modwright.cost.meta_trace import MetaTrace, trace_on_meta

__all__ = ["activation_bytes", "cached_positions", "kv_cache_bytes"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def cached_positions(anatomy: Anatomy, length: int) -> dict[str, int]:
    """How many of ``length`` positions each attention keeps in its cache, by its address.

    An attention with a window of w positions keeps the last w - 1. Encoders and removed attentions
    keep nothing and are not listed.
    """
    holders = [(b, b.attention) for b in anatomy.blocks if b.attention is not None]
    holders = [(block, attention) for block, attention in holders if attention.shape.causal]
    if not holders:
        return {}
    from transformers import DynamicCache

    slots = DynamicCache(config=anatomy.config).layers
    kept = {}
    for block, attention in holders:
        slot = getattr(anatomy.family.cache_layer_owner(block.module), "layer_idx", None)
        window = None if slot is None else getattr(slots[slot], "sliding_window", None)
        kept[attention.address] = length if window is None else min(length, window - 1)
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
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    wanted: torch.dtype | None = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    kept = cached_positions(anatomy, length)
    size = 0
    for attention in (block.attention for block in anatomy.blocks):
        if attention is not None and attention.address in kept:
            shape = attention.shape
            per_position = shape.num_kv_heads * (shape.qk_head_dim + shape.v_head_dim)
            stored = wanted or next(attention.k.module.parameters()).dtype
            size += batch * kept[attention.address] * per_position * stored.itemsize
    return size


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
    for block in anatomy.blocks:
        reads = width * (1 if block.layout == "post" else 2)
        if block.attention is not None:
            shape = block.attention.shape
            both = shape.qk_head_dim + shape.v_head_dim
            mixed = shape.num_kv_heads * both + shape.num_heads * (both + 2 * scores)
            sets.append(reads + mixed)
        if block.mlp is not None:
            sets.append(reads + _mlp_set(block, block.mlp, width))
    head = anatomy.outer.get("head")
    if isinstance(head, Embedding):
        sets.append(width + len(head.parameters()["weight"]))
    return batch * length * max(sets) * item


def _mlp_set(block: Block, mlp: Mlp | MixtureOfExperts, width: int) -> int:
    if isinstance(mlp, MixtureOfExperts):  # one expert after the other, on its share of positions
        return mlp.intermediate_size * 3 * mlp.top_k // mlp.num_experts + mlp.num_experts
    inner = mlp.intermediate_size * (2 if mlp.gate is None else 3)
    if mlp.experts is not None and mlp.experts.mode == "dispatch":
        inner = inner * mlp.experts.experts_per_token // mlp.experts.num_experts**2
    has_other = block.layout == "parallel" and block.attention is not None
    return inner + (width if has_other else 0)
