"""Grouped attention that can stand in for the attention of any family.

Axes: b batch, h query heads, k key/value heads, t query positions, s key positions, d channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.channel_mixers.feed_forward import Shape
from modwright.nn.component import component, has_shape
from modwright.nn.norms import RMSNorm

__all__ = [
    "AttentionShape",
    "GroupedAttention",
    "gather_rotary",
    "naive_attention",
    "rotate",
    "rotate_half",
    "sdpa_attention",
]


@dataclass(frozen=True)
class AttentionShape(Shape):
    """Everything that fixes the structure of a :class:`GroupedAttention`; plain JSON values.

    Attributes:
        hidden_size: width of the residual stream.
        num_heads: query heads H.
        num_kv_heads: key/value heads K.
        qk_head_dim: channels of a query and of a key.
        v_head_dim: channels of a value; may differ from ``qk_head_dim``.
        scaling: factor on the scores. It stays that of the original width when channels go.
        rotary_dim: channels for which the model computes rotary angles; 0 without rotary positions.
        rotary_gather: channels were selected, so each key/value head carries a ``rotary_index``.
        kv_map: query heads carry an explicit ``kv_index``, so groups may have unequal sizes.
        biases: which of "q", "k", "v", "o" have a bias.
        qk_norm_eps: epsilon of the RMS norms on queries and keys; None without them.
        causal: later positions are hidden.
        sliding_window: positions that a query sees; None for all.
        dropout: on attention weights, in training.
        output_dropout: on the result, in training.
        project_out: apply the output projection here; a family that keeps it elsewhere says no.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    scaling: float
    rotary_dim: int = 0
    rotary_gather: bool = False
    kv_map: bool = False
    biases: str = ""
    qk_norm_eps: float | None = None
    causal: bool = True
    sliding_window: int | None = None
    dropout: float = 0.0
    output_dropout: float = 0.0
    project_out: bool = True

    def __post_init__(self) -> None:
        self.check_positive("hidden_size", "num_heads", "num_kv_heads", "qk_head_dim", "v_head_dim")
        if not self.kv_map and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not divide over {self.num_kv_heads} key/value "
                "heads; kv_map=True takes an explicit map"
            )
        if self.rotary_gather and self.qk_head_dim % 2:
            raise ValueError(f"rotary channels come in pairs: qk_head_dim {self.qk_head_dim}")

    def describe(self) -> str:
        """In a few words, for tables.

        Example:
            >>> AttentionShape(16, 4, 2, 4, 6, scaling=0.5).describe()
            '4 heads, 2 kv, qk 4, v 6'
        """
        heads, widths = (self.num_heads, self.num_kv_heads), (self.qk_head_dim, self.v_head_dim)
        return "{} heads, {} kv, qk {}, v {}".format(*heads, *widths)


AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def _expand(module: nn.Module, x: Tensor) -> Tensor:
    groups = getattr(module, "num_key_value_groups", 1)
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def naive_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The truth: scores, mask, softmax in float32, weighted sum; every step a tensor of its own.

    query (b, h, t, d), key (b, k, s, d), value (b, k, s, e) -> (b, t, h, e), weights. The mask is
    additive (float) or boolean (True = visible), broadcast to (b, h, t, s); without one, a causal
    module hides later positions.
    """
    key, value = _expand(module, key), _expand(module, value)
    scores = query @ key.transpose(-1, -2) * scaling
    length, total = scores.shape[-2:]
    if attention_mask is None and getattr(module, "is_causal", False) and length > 1:
        visible = torch.ones(length, total, dtype=torch.bool, device=query.device)
        attention_mask = visible.tril(total - length)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The fast path: torch's fused attention. Same shapes as :func:`naive_attention`."""
    length, total = query.shape[2], key.shape[2]
    causal = attention_mask is None and getattr(module, "is_causal", False) and length > 1
    if causal and length != total:
        visible = torch.ones(length, total, dtype=torch.bool, device=query.device)
        attention_mask, causal = visible.tril(total - length), False
    mixed = F.scaled_dot_product_attention(
        query,
        _expand(module, key),
        _expand(module, value),
        attn_mask=attention_mask,
        dropout_p=dropout if module.training else 0.0,
        is_causal=causal,
        scale=scaling,
    )
    return mixed.transpose(1, 2).contiguous(), None


@component("attention", kind="token_mixer", state="keys", shape=AttentionShape, is_stock=has_shape)
class GroupedAttention(nn.Module):
    """Attention with its own ranks for query/key and for value, and any map from query to KV heads.

    It follows the calling convention of transformers (keyword ``hidden_states``, the cache under
    any of its names, a tuple as result), so it can be placed into any block.

    hidden_states (b, t, hidden_size) -> the same, or (b, t, H * v_head_dim) with
    ``project_out=False``. The cache holds keys (b, K, s, qk_head_dim) and values (b, K, s,
    v_head_dim).

    Example:
        >>> shape = AttentionShape(16, num_heads=4, num_kv_heads=2, qk_head_dim=4, v_head_dim=6,
        ...                        scaling=0.5)
        >>> GroupedAttention(shape)(torch.zeros(1, 5, 16))[0].shape
        torch.Size([1, 5, 16])
    """

    config: Any = None
    rotary_index: Tensor
    kv_index: Tensor

    follows_transformers = True
    host_initialized = True  # it stands for the family's own

    def __init__(self, shape: AttentionShape, attend: AttentionFunction = sdpa_attention) -> None:
        super().__init__()
        self.shape, self.attend = shape, attend
        self.layer_idx: int | None = None
        self.is_causal, self.scaling = shape.causal, shape.scaling
        self.sliding_window = shape.sliding_window
        self.num_key_value_groups = 1 if shape.kv_map else shape.num_heads // shape.num_kv_heads
        d, heads, kv_heads = shape.hidden_size, shape.num_heads, shape.num_kv_heads
        self.q_proj = nn.Linear(d, heads * shape.qk_head_dim, bias="q" in shape.biases)
        self.k_proj = nn.Linear(d, kv_heads * shape.qk_head_dim, bias="k" in shape.biases)
        self.v_proj = nn.Linear(d, kv_heads * shape.v_head_dim, bias="v" in shape.biases)
        self.o_proj = self.q_norm = self.k_norm = None
        if shape.project_out:
            self.o_proj = nn.Linear(heads * shape.v_head_dim, d, bias="o" in shape.biases)
        if shape.qk_norm_eps is not None:
            self.q_norm = RMSNorm(shape.qk_head_dim, shape.qk_norm_eps)
            self.k_norm = RMSNorm(shape.qk_head_dim, shape.qk_norm_eps)
        # Buffers are persistent: a model built on the meta device gets them from its checkpoint.
        for name, index in self._first_indices().items():
            self.register_buffer(name, index)

    def _first_indices(self) -> dict[str, Tensor]:
        """The buffers before channels and groups are chosen."""
        shape, found = self.shape, {}
        if shape.rotary_gather:
            half = torch.arange(shape.qk_head_dim // 2)
            index = torch.cat((half, half + shape.rotary_dim // 2)).clamp(max=shape.rotary_dim)
            found["rotary_index"] = index.repeat(shape.num_kv_heads, 1)
        if shape.kv_map:
            found["kv_index"] = torch.arange(shape.num_heads) % shape.num_kv_heads
        return found

    def reset_parameters(self) -> None:
        """The buffers alone: the maps are modules of their own."""
        for name, index in self._first_indices().items():
            self.get_buffer(name).copy_(index)

    def _rotate(self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries (b, t, H, d) and keys (b, t, K, d) turned by their angles."""
        cos, sin = positions  # (b, t, r)
        if not self.shape.rotary_gather:
            cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
            return rotate(q, cos, sin), rotate(k, cos, sin)
        cos, sin = gather_rotary(cos, sin, self.rotary_index)
        turned = rotate(k, cos, sin)
        if self.shape.kv_map:
            cos, sin = cos.index_select(2, self.kv_index), sin.index_select(2, self.kv_index)
            return rotate(q, cos, sin), turned
        # Query heads of one group turn alike; they stand side by side.
        grouped = q.unflatten(2, (self.shape.num_kv_heads, -1))
        return rotate(grouped, cos.unsqueeze(3), sin.unsqueeze(3)).flatten(2, 3), turned

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        cache = _take_cache(kwargs)
        if args or isinstance(attention_mask, tuple):
            raise TypeError("this attention takes everything after the mask by keyword")
        shape, lead = self.shape, hidden_states.shape[:-1]
        q = self.q_proj(hidden_states).view(*lead, shape.num_heads, shape.qk_head_dim)
        k = self.k_proj(hidden_states).view(*lead, shape.num_kv_heads, shape.qk_head_dim)
        v = self.v_proj(hidden_states).view(*lead, shape.num_kv_heads, shape.v_head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if shape.rotary_dim:
            if position_embeddings is None:
                raise ValueError("rotary positions are missing: no position_embeddings were passed")
            q, k = self._rotate(q, k, position_embeddings)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (b, heads, t, d)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        if shape.kv_map:
            k, v = k.index_select(1, self.kv_index), v.index_select(1, self.kv_index)
        if shape.sliding_window is not None:
            kwargs["sliding_window"] = shape.sliding_window
        mixed, weights = self.attend(
            self,
            q,
            k,
            v,
            attention_mask,
            scaling=self.scaling,
            dropout=shape.dropout if self.training else 0.0,
            **kwargs,
        )
        mixed = mixed.reshape(*lead, -1).contiguous()
        if self.o_proj is not None:
            mixed = F.dropout(self.o_proj(mixed), shape.output_dropout, training=self.training)
        return mixed, weights

    def extra_repr(self) -> str:
        s = self.shape
        return (
            f"heads={s.num_heads}, kv_heads={s.num_kv_heads}, qk_head_dim={s.qk_head_dim}, "
            f"v_head_dim={s.v_head_dim}"
        )


def _take_cache(kwargs: dict[str, Any]) -> Any:
    """The key/value cache under whichever name this version and family of transformers uses."""
    found = [kwargs.pop(name, None) for name in ("cache", "past_key_values", "layer_past")]
    kwargs.pop("use_cache", None)
    return next((cache for cache in found if cache is not None), None)


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1), where x1 and x2 are the halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns every pair (j, j + d/2) of ``x`` (..., d) by its angle, in the first r <= d channels.

    ``cos`` and ``sin`` broadcast to (..., r); the rest stays (partial rotary).
    """
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return x * cos + rotate_half(x) * sin
    turned, rest = x[..., :width], x[..., width:]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), dim=-1)


def gather_rotary(cos: Tensor, sin: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Picks, for each key/value head, the angles of the channels that the head kept.

    cos and sin (b, t, r) as the model computes them for all r rotary channels, index (k, d) -> both
    (b, t, k, d). The index r stands for "not rotated" (cos 1, sin 0).
    """
    flat, shape = index.reshape(-1), (*cos.shape[:2], *index.shape)
    cos, sin = F.pad(cos, (0, 1), value=1.0), F.pad(sin, (0, 1), value=0.0)
    return cos.index_select(-1, flat).view(shape), sin.index_select(-1, flat).view(shape)
