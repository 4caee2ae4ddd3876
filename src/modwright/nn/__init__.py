"""Parts in plain torch: they take explicit numbers and other parts, never a config."""

from modwright.nn.placeholders import ZeroModule, SkippedAttention, Identity
from modwright.nn.channel_mixers.expert_feed_forward import ExpertFeedForward
from modwright.nn.channel_mixers.expert_shape import ExpertShape
from modwright.nn.channel_mixers.feed_forward import FeedForward, FeedForwardShape
from modwright.nn.channel_mixers.mixture import Mixture, MixtureShape, route
from modwright.nn.factored import FactorPair
from modwright.nn.narrow import narrow_
from modwright.nn.norms import CRMSNorm, RestoringCRMSNorm, RMSNorm
from modwright.nn.opaque import Opaque
from modwright.nn.token_mixers.attention import (
    AttentionShape,
    BareAttention,
    GridAttention,
    GroupedAttention,
)
from modwright.nn.token_mixers.placed import PlacedMixer
from modwright.nn.zero_mean import ZeroMean, ZeroMeanEmbedding, ZeroMeanLinear, zero_mean_

__all__ = [
    "ZeroModule",
    "SkippedAttention",
    "AttentionShape",
    "BareAttention",
    "CRMSNorm",
    "ExpertFeedForward",
    "ExpertShape",
    "FactorPair",
    "FeedForward",
    "FeedForwardShape",
    "GridAttention",
    "GroupedAttention",
    "Mixture",
    "MixtureShape",
    "Opaque",
    "Identity",
    "PlacedMixer",
    "RMSNorm",
    "RestoringCRMSNorm",
    "ZeroMean",
    "ZeroMeanEmbedding",
    "ZeroMeanLinear",
    "narrow_",
    "route",
    "zero_mean_",
]
