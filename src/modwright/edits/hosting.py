"""Plain-torch parts at home in a transformers model: its config, its functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modwright.nn import AttentionShape, FeedForward, FeedForwardShape, GroupedAttention
from modwright.nn.token_mixers.attention import naive_attention

__all__ = ["attend_as_configured", "hosted_attention", "hosted_feed_forward"]


def attend_as_configured(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Runs the attention function that the model's config names: eager, sdpa, flash, flex."""
    chosen = module.config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, naive_attention)
    result: tuple[Tensor, Tensor | None] = attend(module, query, key, value, mask, **kwargs)
    return result


def hosted_attention(config: Any, kwargs: dict[str, Any]) -> GroupedAttention:
    """A grouped attention that holds the model's own config object.

    The object matters: the model builds its masks for the implementation that its config names. An
    attention that asked another config could run a function that the mask was not made for, and
    would see the future without an error.
    """
    part = GroupedAttention(AttentionShape(**kwargs), attend=attend_as_configured)
    part.config = config
    return part


def hosted_feed_forward(kwargs: dict[str, Any]) -> FeedForward:
    """A feed-forward part with the activation that transformers has under the shape's name."""
    shape = FeedForwardShape(**kwargs)
    return FeedForward(shape, ACT2FN[shape.activation])
