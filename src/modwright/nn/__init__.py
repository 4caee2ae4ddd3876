"""Parts in plain torch: they take explicit numbers and other parts, never a config."""

from modwright.nn.activations.fit import fit_coefficients
from modwright.nn.activations.polynomial import PolyNorm, PolyReLU
from modwright.nn.activations.width import equal_parameter_width
from modwright.nn.channel_mixers.expert_feed_forward import ExpertFeedForward
from modwright.nn.channel_mixers.feed_forward import FeedForward, FeedForwardShape
from modwright.nn.channel_mixers.mixture import Mixture, MixtureShape, route
from modwright.nn.factored import FactorPair
from modwright.nn.norms import CRMSNorm, RestoringCRMSNorm, RMSNorm
from modwright.nn.placeholders import Identity, Opaque, SkippedAttention, ZeroModule
from modwright.nn.routing import ExpertShape
from modwright.nn.token_mixers.attention import AttentionShape, GroupedAttention
from modwright.nn.zero_mean import ZeroMean, ZeroMeanEmbedding, ZeroMeanLinear, narrow_, zero_mean_

__all__ = [
    "AttentionShape",
    "CRMSNorm",
    "ExpertFeedForward",
    "ExpertShape",
    "FactorPair",
    "FeedForward",
    "FeedForwardShape",
    "GroupedAttention",
    "Identity",
    "Mixture",
    "MixtureShape",
    "Opaque",
    "PolyNorm",
    "PolyReLU",
    "RMSNorm",
    "RestoringCRMSNorm",
    "SkippedAttention",
    "ZeroMean",
    "ZeroMeanEmbedding",
    "ZeroMeanLinear",
    "ZeroModule",
    "equal_parameter_width",
    "fit_coefficients",
    "narrow_",
    "route",
    "zero_mean_",
]
