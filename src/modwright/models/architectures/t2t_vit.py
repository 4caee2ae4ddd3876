"""T2T-ViT (arXiv 2101.11986): a stem of overlapping tokens, a deep and narrow backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.converters.t2t_vit import official_names
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.dense_block import DenseBlock, DenseTransition
from modwright.nn.ghost import GhostLinear, GhostMlp
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.layouts import SpatialShape, to_tokens
from modwright.nn.prefix_tokens import PrefixTokens
from modwright.nn.residual import drop_path_rates
from modwright.nn.squeeze_excite import SqueezeExcite
from modwright.nn.stems.conv_stem import Conv, ConvStem
from modwright.nn.stems.t2t import SPLITS, T2TStem, TokenLayer
from modwright.nn.token_mixers.performer import PerformerAttention
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["BLOCKS", "STEMS", "VARIANTS", "T2TViTConfig", "T2TViTForImageClassification"]

STRIDE = 16


@strict
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
        num_heads: heads of each block.
        mlp_ratio: neurons per channel.
        qkv_bias: biases of the blocks' maps to queries, keys and values.
        stem_qkv_bias: the same in the attention of the stem "transformer".
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
        for what, name, known in (
            ("stem", self.stem, STEMS),
            ("block_type", self.block_type, BLOCKS),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        self.check_multiples(STRIDE, *self.size)
        if int(self.token_dim * self.kernel_ratio) < 1:
            raise InvalidInputError(
                f"kernel_ratio {self.kernel_ratio} of token_dim {self.token_dim} "
                "leaves no random feature"
            )
        if self.block_type == "dense" and self.depths < len(self.dense_groups):
            raise InvalidInputError(
                f"depths {self.depths} is less than the {len(self.dense_groups)} dense_groups"
            )
        for width in self.hidden_sizes:
            if width % self.num_heads:
                raise InvalidInputError(
                    f"num_heads {self.num_heads} does not divide a width of {width}"
                )
        if self.block_type == "ghost" and (self.mlp_ratio != 3 or self.hidden_size % 2):
            raise InvalidInputError(
                "block_type 'ghost' needs mlp_ratio 3 and an even hidden_size, "
                f"not {self.mlp_ratio} and {self.hidden_size}"
            )

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


# Stems


def _performer(config: T2TViTConfig) -> nn.Module:
    def layer(channels: int, width: int) -> nn.Module:
        features, drop = int(width * config.kernel_ratio), config.token_drop_rate
        attention = PerformerAttention(
            channels, 1, features, out_dim=width, proj_drop=drop, eps=config.token_eps
        )
        return TokenLayer(channels, attention, drop)

    return T2TStem(config.num_channels, config.hidden_size, config.token_dim, layer)


def _transformer(config: T2TViTConfig) -> nn.Module:
    def layer(channels: int, width: int) -> nn.Module:
        # the scale is one of the channels that come in, not of those of the head
        attention = SelfAttention(
            channels, 1, out_dim=width, qkv_bias=config.stem_qkv_bias, scale=channels**-0.5
        )
        return TokenLayer(channels, attention)

    return T2TStem(config.num_channels, config.hidden_size, config.token_dim, layer)


def _convolution(config: T2TViTConfig) -> nn.Module:
    widths = (config.token_dim, config.token_dim, config.hidden_size)
    rows = [Conv(out, *split) for out, split in zip(widths, SPLITS)]
    return ConvStem(config.num_channels, rows)


def _patch(config: T2TViTConfig) -> nn.Module:
    return ConvStem(config.num_channels, [Conv(config.hidden_size, STRIDE, STRIDE)])


STEMS: dict[str, Callable[[T2TViTConfig], nn.Module]] = {
    "performer": _performer,
    "transformer": _transformer,
    "convolution": _convolution,
    "patch": _patch,
}


# Blocks


def _attention(config: T2TViTConfig, dim: int, **more: Any) -> nn.Module:
    return SelfAttention(
        dim, config.num_heads, qkv_bias=config.qkv_bias, scale=config.qk_scale, **more
    )


def _block(
    config: T2TViTConfig, dim: int, rate: float, mlp: nn.Module | None = None, **mixing: Any
) -> Block:
    mlp = Mlp(dim, int(dim * config.mlp_ratio)) if mlp is None else mlp
    mixer = _attention(config, dim, **mixing)
    return Block(dim, mixer, mlp, lambda: nn.LayerNorm(dim), drop_path=rate)


def _rates(config: T2TViTConfig) -> list[float]:
    return drop_path_rates(config.drop_path_rate, [config.depths])[0]


def _plain(config: T2TViTConfig) -> list[nn.Module]:
    return [_block(config, config.hidden_size, rate) for rate in _rates(config)]


def _squeeze_excite(config: T2TViTConfig) -> list[nn.Module]:
    dim = config.hidden_size
    return [
        _block(config, dim, rate, gate=SqueezeExcite(dim, config.reduction))
        for rate in _rates(config)
    ]


def _ghost(config: T2TViTConfig) -> list[nn.Module]:
    dim = config.hidden_size
    return [
        _block(config, dim, rate, mlp=GhostMlp(dim), linear=GhostLinear, storage="separate")
        for rate in _rates(config)
    ]


def _dense(config: T2TViTConfig) -> list[nn.Module]:
    rates, width = _rates(config), config.hidden_size
    found: list[nn.Module] = []
    for group, count in enumerate(config.dense_groups):
        if group:
            found.append(DenseTransition(width, width // 2))
            width //= 2
        for _ in range(count):
            # the rate grows from group to group, not from block to block
            found.append(DenseBlock(_block(config, width, rates[group]), width, config.growth))
            width += config.growth
    return found


BLOCKS: dict[str, Callable[[T2TViTConfig], list[nn.Module]]] = {
    "plain": _plain,
    "squeeze_excite": _squeeze_excite,
    "ghost": _ghost,
    "dense": _dense,
}


class T2TViTForImageClassification(TokenClassifier):
    """A T2T-ViT with a classifier on its class token.

    Images of another size than the config's get the positions resized; a config with another
    ``image_size`` computes them anew, which does not give the same numbers.

    Example:
        >>> fields = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> config = T2TViTConfig(**fields, token_dim=8, num_labels=5)
        >>> model = T2TViTForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    config_class = T2TViTConfig
    num_prefix_tokens = 1

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__(config)
        dim, features = config.hidden_size, config.num_features
        height, width = config.size
        self.stem = STEMS[config.stem](config)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedTable(
            dim, (height // STRIDE, width // STRIDE), prefix=1, antialias=False, fixed=True
        )
        self.drop = nn.Dropout(config.drop_rate)
        self.blocks = BlockSequence(BLOCKS[config.block_type](config))
        self.norm = nn.LayerNorm(features)
        self.head = self.make_head(features, prefix=1)
        self.describe_features(features, STRIDE, len(self.blocks))
        for entry, block in zip(self.feature_info, self.blocks):
            entry["num_chs"] = _width_behind(block, dim)
        self.post_init()

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        self.config.check_multiples(STRIDE, *pixel_values.shape[2:])

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, SpatialShape]:
        x = self.stem(pixel_values)
        spatial_shape = (x.shape[2], x.shape[3])
        return self.drop(self.positions(self.prefix(to_tokens(x)), spatial_shape)), spatial_shape

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        if norm and self.config.block_type == "dense":
            raise InvalidInputError("the last norm of dense blocks fits the last feature map alone")
        return super().forward_maps(pixel_values, norm)

    @classmethod
    def state_dict_converters(cls, config: T2TViTConfig) -> dict[str, StateDictConverter]:
        return {"official": official_names(config)}


def _width_behind(block: nn.Module, dim: int) -> int:
    """Channels that a block gives; ``dim`` for one that keeps them."""
    if isinstance(block, DenseBlock):
        return block.grow.in_features + block.grow.out_features
    return block.linear.out_features if isinstance(block, DenseTransition) else dim


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
