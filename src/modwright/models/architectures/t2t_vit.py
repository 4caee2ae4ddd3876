"""T2T-ViT (arXiv 2101.11986): a stem of overlapping tokens, a deep and narrow backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.nn.block import Block, BlockSequence, DenseBlock, DenseTransition
from modwright.nn.channel_mixers.mlp import GhostLinear, GhostMlp, Mlp, SqueezeExcite
from modwright.nn.stems.conv_stem import Conv, ConvStem
from modwright.nn.stems.t2t import SPLITS, T2TStem, TokenLayer
from modwright.nn.token_mixers.performer import PerformerAttention
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["BLOCKS", "STEMS", "VARIANTS", "T2TViTConfig", "T2TViTForImageClassification"]

STRIDE = 16


class T2TViTConfig(ImageConfig):
    """Structure of a T2T-ViT.

    Attributes:
        stem: a name of :data:`STEMS`: tokens to token with "performer" or "transformer" layers,
            "convolution" in three steps, or "patch": hard patches of 16 x 16 pixels.
        token_dim: channels inside the stem.
        kernel_ratio: random features per channel of a performer layer.
        token_drop_rate: dropout of performer layers in training, whatever ``drop_rate`` says.
        token_eps: added to the divisor of performer layers. The released models have 1e-8, which
            silences tokens with large queries; 0 does not.
        hidden_size: channels of the backbone, of its first block where blocks are dense.
        depths: blocks. Where they are dense, ``dense_groups`` counts them, and ``depths`` only says
            how fast stochastic depth grows from group to group.
        stem_qkv_bias: ``qkv_bias`` of the attention of the stem "transformer".
        qk_scale: of the scores; the root of the channels of a head, inverted, unless it is said.
        block_type: a name of :data:`BLOCKS`: "plain", "squeeze_excite", "ghost" or "dense".
        reduction: of "squeeze_excite".
        dense_groups: blocks of each group of "dense".
        growth: channels that each block of "dense" adds.
    """

    model_type = "t2t_vit"
    attribute_map = {"embed_dim": "hidden_size", "depth": "depths", "blocks": "block_type"}

    stem: str = "performer"
    token_dim: int = 64
    kernel_ratio: float | int = 0.5
    token_drop_rate: float | int = 0.1
    token_eps: float | int = 1e-8
    hidden_size: int = 384
    depths: int = 14
    num_heads: int = 6
    mlp_ratio: float | int = 3
    qkv_bias: bool = False
    stem_qkv_bias: bool = False
    qk_scale: float | None = None
    block_type: str = "plain"
    reduction: int = 16
    dense_groups: list[int] | tuple[int, ...] = (3, 6, 6, 4)
    growth: int = 64
    global_pool: str = "token"

    # Files of version 0.1 do not say it and have the blocks'.
    stands_for = {"stem_qkv_bias": "qkv_bias"}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_names(stem=STEMS, block_type=BLOCKS)
        self.check_size(*self.size)
        self.require(
            int(self.token_dim * self.kernel_ratio) > 0,
            f"kernel_ratio {self.kernel_ratio} of token_dim {self.token_dim} leaves no random "
            "feature",
        )
        kind, groups, depth = self.block_type, len(self.dense_groups), self.depths
        told = f"depths {depth} is less than the {groups} dense_groups"
        self.require(kind != "dense" or depth >= groups, told)
        self.check_divides("num_heads", *self.hidden_sizes)
        self.require(
            kind != "ghost" or (self.mlp_ratio == 3 and self.hidden_size % 2 == 0),
            "block_type 'ghost' needs mlp_ratio 3 and an even hidden_size, "
            f"not {self.mlp_ratio} and {self.hidden_size}",
        )

    @property
    def multiple(self) -> int:
        return STRIDE

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels before each block; "dense" ones have others than ``hidden_size``."""
        if self.block_type != "dense":
            return [self.hidden_size] * self.depths
        found, width = [], self.hidden_size
        for count in self.dense_groups:
            found += [width + b * self.growth for b in range(count)]
            width = (width + count * self.growth) // 2
        return found

    @property
    def num_features(self) -> int:
        """Channels behind the last block."""
        return self.hidden_sizes[-1] + (self.growth if self.block_type == "dense" else 0)


def _performer(config: T2TViTConfig, channels: int, width: int) -> nn.Module:
    features, drop = int(width * config.kernel_ratio), config.token_drop_rate
    attention = PerformerAttention(
        channels, 1, features, out_dim=width, proj_drop=drop, eps=config.token_eps
    )
    return TokenLayer(channels, attention, drop)


def _transformer(config: T2TViTConfig, channels: int, width: int) -> nn.Module:
    # the scale is one of the channels that come in, not of those of the head
    attention = SelfAttention(
        channels, 1, out_dim=width, qkv_bias=config.stem_qkv_bias, scale=channels**-0.5
    )
    return TokenLayer(channels, attention)


def _t2t(layer: Callable[..., nn.Module]) -> Callable[[T2TViTConfig], nn.Module]:
    return lambda config: T2TStem(
        config.num_channels, config.hidden_size, config.token_dim, partial(layer, config)
    )


def _convolutions(config: T2TViTConfig) -> nn.Module:
    widths = (config.token_dim, config.token_dim, config.hidden_size)
    rows = [Conv(out, *split) for out, split in zip(widths, SPLITS)]
    return ConvStem(config.num_channels, rows)


STEMS: dict[str, Callable[[T2TViTConfig], nn.Module]] = {
    "performer": _t2t(_performer),
    "transformer": _t2t(_transformer),
    "convolution": _convolutions,
    "patch": lambda config: ConvStem(
        config.num_channels, [Conv(config.hidden_size, STRIDE, STRIDE)]
    ),
}


# What a block of each kind has of its own: its MLP, or arguments of its attention.
BLOCKS: dict[str, Callable[[T2TViTConfig], dict[str, Any]]] = {
    "plain": lambda config: {},
    "squeeze_excite": lambda config: {"gate": SqueezeExcite(config.hidden_size, config.reduction)},
    "ghost": lambda config: {
        "mlp": GhostMlp(config.hidden_size),
        "linear": GhostLinear,
        "storage": "separate",
    },
    "dense": lambda config: {},
}


def _block(
    config: T2TViTConfig, dim: int, rate: float, mlp: nn.Module | None = None, **mixing: Any
) -> Block:
    mlp = Mlp(dim, int(dim * config.mlp_ratio)) if mlp is None else mlp
    mixer = SelfAttention(
        dim, config.num_heads, qkv_bias=config.qkv_bias, scale=config.qk_scale, **mixing
    )
    return Block(dim, mixer, mlp, partial(nn.LayerNorm, dim), drop_path=rate)


def _blocks(config: T2TViTConfig) -> list[tuple[nn.Module, int]]:
    """Blocks, and the channels that each gives."""
    rates, width, kind = config.rates[0], config.hidden_size, config.block_type
    if kind != "dense":
        return [(_block(config, width, rate, **BLOCKS[kind](config)), width) for rate in rates]
    found: list[tuple[nn.Module, int]] = []
    for group, count in enumerate(config.dense_groups):
        if group:
            found.append((DenseTransition(width, width // 2), width // 2))
            width //= 2
        for _ in range(count):
            # the rate grows from group to group, not from block to block
            block = DenseBlock(_block(config, width, rates[group]), width, config.growth)
            width += config.growth
            found.append((block, width))
    return found


class T2TViTForImageClassification(TokenClassifier):
    """A T2T-ViT with a classifier on its class token.

    Images of another size than the config's get the positions resized; a config with another
    ``image_size`` computes them anew, which does not give the same numbers.

    Example:
        >>> sizes = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> T2TViTForImageClassification(T2TViTConfig(**sizes, token_dim=8)).num_features
        16
    """

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__(config)
        dim, features = config.hidden_size, config.num_features
        self.stem = STEMS[config.stem](config)
        self.begin_stream(dim, antialias=False, fixed=True)
        blocks, widths = zip(*_blocks(config))
        self.blocks = BlockSequence(list(blocks))
        self.finish(nn.LayerNorm(features), features, widths, STRIDE)

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        if norm and self.config.block_type == "dense":
            raise InvalidInputError("the last norm of dense blocks fits the last feature map alone")
        return super().forward_maps(pixel_values, norm)

    @classmethod
    def state_dict_converters(cls, config: T2TViTConfig) -> dict[str, StateDictConverter]:
        return {"official": _official(config)}


# Names in the authors' repository, yitu-opensource/T2T-ViT
_NORMS = same("norm1", "norm2")
_PLAIN = {
    **same("mlp.fc1", "mlp.fc2"),
    **_NORMS,
    "attn.qkv": "mixer.qkv",
    "attn.proj": "mixer.proj",
}
_IN_STEM = {
    "performer": {
        **_NORMS,
        "kqv": "attention.qkv",
        "proj": "attention.proj",
        "w": "attention.features",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    },
    "transformer": {theirs: ours.replace("mixer", "attention") for theirs, ours in _PLAIN.items()},
}
_IN_BLOCK = {
    "plain": _PLAIN,
    "squeeze_excite": {
        **_PLAIN,
        "attn.se_layer.fc.0": "mixer.gate.fc1",
        "attn.se_layer.fc.2": "mixer.gate.fc2",
    },
    "ghost": {
        **same("mlp.fc1", "mlp.fc2"),
        **_NORMS,
        "attn.proj": "mixer.proj",
        **{f"attn.{part}": f"mixer.{part}.primary" for part in "qkv"},
    },
    "dense": {
        **{theirs: f"block.{ours}" for theirs, ours in _PLAIN.items()},
        "dense_linear": "grow",
        "linear": "linear",
    },
}
_CENTER_ONLY = {
    **{f"attn.cheap_operation_{part}": f"mixer.{part}.cheap" for part in "qkv"},
    "mlp.cheap_operation2": "mlp.cheap1",
    "mlp.cheap_operation3": "mlp.cheap2",
}


def _swap_thirds(tensor: Tensor) -> Tensor:
    """Rows of keys, queries, values -> rows of queries, keys, values, and back."""
    first, second, third = tensor.chunk(3)
    return torch.cat((second, first, third))


def _official(config: T2TViTConfig) -> StateDictConverter:
    names = {"cls_token": "prefix.cls_token", "pos_embed": "positions.table"}
    names |= {"norm": "norm", "head": "head.fc"}
    changes: dict[str, Any] = {}
    if config.stem == "patch":
        names["patch_embed.proj"] = "stem.conv0"
    elif config.stem == "convolution":
        splits = {"soft_split0": "conv0", "soft_split1": "conv1", "project": "conv2"}
        names |= under("tokens_to_token", "stem", splits)
    else:
        names["tokens_to_token.project"] = "stem.project"
        for n in range(2):
            layer = f"stem.layers.{n}"
            names |= under(f"tokens_to_token.attention{n + 1}", layer, _IN_STEM[config.stem])
            if config.stem == "performer":
                changes[f"{layer}.attention.qkv"] = (_swap_thirds, _swap_thirds)
    dense = sum(config.dense_groups) + len(config.dense_groups) - 1
    for b in range(dense if config.block_type == "dense" else config.depths):
        block = f"blocks.{b}"
        names |= under(block, block, _IN_BLOCK[config.block_type])
        if config.block_type == "ghost":
            names |= under(block, block, _CENTER_ONLY)
            for cheap in _CENTER_ONLY.values():
                changes[f"{block}.{cheap}"] = (torch.flatten, lambda x: x[:, None, None])
    return StateDictConverter(names, changes)


_DROP = {"drop_path_rate": 0.1}
_LITE = {"hidden_size": 256, "num_heads": 4, "mlp_ratio": 2, **_DROP}
_14 = {"hidden_size": 384, "depths": 14, "num_heads": 6, **_DROP}
_19 = {"hidden_size": 448, "depths": 19, "num_heads": 7, **_DROP}
_24 = {"hidden_size": 512, "depths": 24, "num_heads": 8, **_DROP}
_WIDE = {"hidden_size": 768, "depths": 4, "num_heads": 12, **_DROP}
_DENSE = {"hidden_size": 128, "depths": 12, "num_heads": 8, "mlp_ratio": 2, **_DROP}

VARIANTS: dict[str, dict[str, Any]] = {
    "t2t_vit_7": {**_LITE, "depths": 7},
    "t2t_vit_10": {**_LITE, "depths": 10},
    "t2t_vit_12": {**_LITE, "depths": 12},
    "t2t_vit_14": _14,
    "t2t_vit_14_384": {**_14, "image_size": 384},
    "t2t_vit_19": _19,
    "t2t_vit_24": _24,
    "t2t_vit_t_14": {**_14, "stem": "transformer"},
    "t2t_vit_t_19": {**_19, "stem": "transformer"},
    "t2t_vit_t_24": {**_24, "stem": "transformer"},
    "t2t_vit_c_14": {**_14, "stem": "convolution"},
    "t2t_vit_patch16_14": {**_14, "stem": "patch"},
    "t2t_vit_14_resnext": {**_14, "num_heads": 32},
    "t2t_vit_14_wide": _WIDE,
    "t2t_vit_se": {**_14, "block_type": "squeeze_excite"},
    "t2t_vit_ghost": {**_14, "depths": 16, "block_type": "ghost"},
    "t2t_vit_dense": {**_DENSE, "block_type": "dense"},
}

register_architecture(T2TViTConfig, T2TViTForImageClassification, VARIANTS)
