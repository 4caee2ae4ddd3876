"""FMViT (arXiv 2311.05707): attention for low frequencies, grouped convolutions for high ones.

The published ideas; the layout layer by layer and the variants are this library's own, in the line
of Next-ViT (arXiv 2207.05501).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.vision_model import start_normal
from modwright.nn.block import (
    Block,
    BlockSequence,
    BranchedBlock,
    EmbeddedBlock,
    FrequencyPair,
    Stage,
)
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.multi_group_conv import MultiGroupConv
from modwright.nn.stems.conv_stem import Conv, ConvStem, PooledProjection
from modwright.nn.token_mixers.pooling import MultiHeadConvAttention
from modwright.nn.token_mixers.reduced_attention import POOLS, ReducedAttention

__all__ = ["VARIANTS", "FmvitConfig", "FmvitForImageClassification", "hidden_width"]

# Of a mixing block's stochastic depth: what its attention and its convolution have of it.
LOW_SHARE, HIGH_SHARE = 0.75, 0.25


class FmvitConfig(ImageConfig):
    """Structure of an FMViT.

    Attributes:
        hidden_sizes: channels of a stage's convolution blocks.
        out_widths: channels of a stage's mixing blocks; the first stage has none.
        stem_widths: of the stem's four convolutions.
        mixing_every: from the second stage on, one block in so many mixes frequencies, and the
            last of a stage always does.
        low_share: what attention has of a mixing block's channels, rounded to ``head_dim``.
        frequency_groups: pairs of attention and convolution side by side in a mixing block.
        head_dim: channels of a head; channels of a group of the grouped convolutions.
        reductions: per stage, the side of the square of positions that share a key.
        pool: "square", or "flat" for runs of positions row by row.
        groups: numbers of groups of the branches of the channel mixers.
        branches: of the maps to queries, keys and values.
        conv_ratio: neurons per channel in convolution blocks.
        mixing_ratio: the same in mixing blocks.
        mlp_multiple: what numbers of neurons are rounded to.
    """

    model_type = "fmvit"
    attribute_map = {"widths": "hidden_sizes"}

    depths: list[int] | tuple[int, ...] = (1, 2, 5, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 96, 160)
    out_widths: list[int] | tuple[int, ...] = (32, 64, 128, 192)
    stem_widths: list[int] | tuple[int, ...] = (64, 32, 64, 64)
    mixing_every: int = 5
    low_share: float = 0.75
    frequency_groups: int = 1
    head_dim: int = 32
    reductions: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    pool: str = "square"
    groups: list[int] | tuple[int, ...] = (1, 2, 4)
    branches: int = 2
    conv_ratio: float = 3.0
    mixing_ratio: float = 2.0
    mlp_multiple: int = 32
    fused: bool = False

    # Files of version 0.1 do not say it and have the head's.
    stands_for = {"mlp_multiple": "head_dim"}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.per_stage(len(self.depths), "hidden_sizes", "out_widths", "reductions")
        self.check_names(pool=POOLS)
        self.check_divides("head_dim", *self.hidden_sizes)
        step = self.head_dim * self.frequency_groups
        for width in self.out_widths[1:]:
            self.require(
                width % step == 0 and width >= 2 * step,
                f"a mixing block of {width} channels cannot be shared out to "
                f"{self.frequency_groups} pairs in steps of head_dim {self.head_dim}",
            )

    @property
    def multiple(self) -> int:
        # pools of keys have no ragged border, wherever there is attention
        pooled = [4 * 2**s * r for s, r in enumerate(self.reductions) if s and r > 1]
        return math.lcm(*pooled) if self.pool == "square" else 1

    def mixes(self, stage: int, block: int) -> bool:
        """Whether a block mixes frequencies; it is a convolution block otherwise."""
        last = block == self.depths[stage] - 1
        return stage > 0 and (last or (block + 1) % self.mixing_every == 0)

    def low_width(self, width: int) -> int:
        """Channels of attention in a pair of ``width`` channels; some are left to the other."""
        steps = int(width * self.low_share / self.head_dim + 0.5)
        return min(max(steps, 1) * self.head_dim, width - self.head_dim)


class FmvitForImageClassification(PyramidClassifier):
    """The pyramid with a classifier.

    Example:
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "out_widths": [8, 16]}
        >>> sizes |= {"head_dim": 8, "reductions": [2, 1], "groups": [1, 2]}
        >>> FmvitForImageClassification(FmvitConfig(**sizes)).num_features
        16
    """

    def __init__(self, config: FmvitConfig) -> None:
        super().__init__(config)
        rows = [
            Conv(width, 3, stride, 1, bias=False, norm="bn2d", act="relu")
            for width, stride in zip(config.stem_widths, (2, 1, 1, 2))
        ]
        self.stem = ConvStem(config.num_channels, rows)
        stages, inputs, widths = [], config.stem_widths[-1], []
        for s, rates in enumerate(config.rates):
            stage, inputs = _stage(config, s, inputs, rates)
            stages.append(stage)
            widths.append(inputs)
        self.stages = nn.ModuleList(stages)
        self.finish(nn.BatchNorm2d(inputs), inputs, widths)

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        start_normal(conv)


def _maps(groups: Any, identity: bool | None = None) -> Callable[..., nn.Module]:
    """Makes 1 x 1 maps of branches; the norms of the branches stand for a bias."""
    branches = [(1, count) for count in groups]
    return lambda ins, outs, bias: MultiGroupConv(ins, outs, branches, identity=identity)


def hidden_width(neurons: float, multiple: int) -> int:
    """The nearest multiple, or the one above where that would be below nine tenths.

    Example:
        >>> hidden_width(48, 32), hidden_width(40, 32), hidden_width(96, 32)
        (64, 64, 96)
    """
    found = max(multiple, int(neurons + multiple / 2) // multiple * multiple)
    return found + multiple if found < 0.9 * neurons else found


def _channel_block(config: FmvitConfig, dim: int, ratio: float, rate: float) -> Block:
    hidden = hidden_width(dim * ratio, config.mlp_multiple)
    mlp = Mlp(dim, hidden, act="relu", layout="map", linear=_maps(config.groups))
    return Block(dim, None, mlp, partial(nn.BatchNorm2d, dim), layout="map", drop_path=rate)


def _conv_block(config: FmvitConfig, dim: int, rate: float) -> Block:
    few = dim // config.head_dim
    conv = MultiGroupConv(dim, dim, [(3, few), (3, 2 * few), (1, few)])
    return Block(
        dim, MultiHeadConvAttention(dim, conv), None, nn.Identity, layout="map", drop_path=rate
    )


def _embed(inputs: int, outputs: int) -> nn.Module | None:
    return None if inputs == outputs else PooledProjection(inputs, outputs)


def _mixing_block(config: FmvitConfig, s: int, inputs: int, rate: float) -> nn.Module:
    width, count = config.out_widths[s], config.frequency_groups
    low = config.low_width(width // count)
    high, one_each = width // count - low, [1] * config.branches
    pairs = []
    for _ in range(count):
        mixer = ReducedAttention(
            low,
            config.head_dim,
            reduction=config.reductions[s],
            pool=config.pool,
            projection=_maps(one_each, identity=False),
            value=_maps(one_each),
        )
        norm, share = partial(nn.BatchNorm2d, low), rate * LOW_SHARE
        attention = Block(low, mixer, None, norm, layout="map", drop_path=share)
        conv = _conv_block(config, high, rate * HIGH_SHARE)
        embedded = EmbeddedBlock(_embed(inputs, low), [attention])
        pairs.append(FrequencyPair(embedded, EmbeddedBlock(PooledProjection(low, high), [conv])))
    return BranchedBlock(pairs, _channel_block(config, width, config.mixing_ratio, rate))


def _plain_block(config: FmvitConfig, s: int, inputs: int, rate: float) -> nn.Module:
    width = config.hidden_sizes[s]
    conv = _conv_block(config, width, rate)
    channels = _channel_block(config, width, config.conv_ratio, rate)
    return EmbeddedBlock(_embed(inputs, width), [conv, channels])


def _stage(config: FmvitConfig, s: int, inputs: int, rates: list[float]) -> tuple[Stage, int]:
    """A stage, and the channels that it gives."""
    width = config.hidden_sizes[s]
    down = PooledProjection(inputs, width, 2 if s else 1) if s or inputs != width else None
    inputs = width
    blocks: list[nn.Module] = []
    for b, rate in enumerate(rates):
        mixes = config.mixes(s, b)
        make = _mixing_block if mixes else _plain_block
        blocks.append(make(config, s, inputs, rate))
        inputs = config.out_widths[s] if mixes else width
    return Stage(BlockSequence(blocks), downsample=down), inputs


VARIANTS: dict[str, dict[str, Any]] = {
    "fmvit_nano": {},
    "fmvit_nextvit_s_like": {
        "depths": (3, 4, 10, 3),
        "hidden_sizes": (96, 192, 384, 768),
        "out_widths": (96, 256, 512, 1024),
    },
}

register_architecture(FmvitConfig, FmvitForImageClassification, VARIANTS)
