"""Parts in plain torch: they take explicit numbers and other parts, never a config."""

from modwright.nn.absent import Absent, AbsentAttention, PassThrough
from modwright.nn.channel_mixers.feed_forward import FeedForward, FeedForwardShape
from modwright.nn.factored import FactorPair
from modwright.nn.token_mixers.attention import AttentionShape, GroupedAttention

__all__ = [
    "Absent",
    "AbsentAttention",
    "AttentionShape",
    "FactorPair",
    "FeedForward",
    "FeedForwardShape",
    "GroupedAttention",
    "PassThrough",
]
