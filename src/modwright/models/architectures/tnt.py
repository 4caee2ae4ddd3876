"""TNT, Transformer in Transformer (arXiv 2103.00112): patches that are sentences of words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import Names, StateDictConverter, under
from modwright.models.vision_model import token_block
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp, SqueezeExcite
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.layouts import SpatialShape
from modwright.nn.nested_block import NestedBlock, PixelToPatch
from modwright.nn.stems.pixel_embed import PixelEmbed
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["VARIANTS", "TNTConfig", "TNTForImageClassification"]


class TNTConfig(ImageConfig):
    """Structure of a TNT.

    Attributes:
        inner_stride: pixels from word to word.
        inner_dim: channels of a word.
        hidden_size: channels of a sentence token.
        inner_heads: heads over the words of a patch.
        num_heads: heads over the sentences.
        mlp_ratio: neurons per channel, of both streams.
        se_reduction: channels per channel inside a squeeze and excitation behind the sentences'
            MLP; None has none. The paper's has 4.
        inner_blocks: blocks that have an inner stream, counted from 1 as the paper does; all
            unless it is said.
        legacy: the form of the first public port: the image is convolved before it is cut, and
            words are normed one by one on their way to the sentences. Weights of one form do not
            fit the other.
    """

    model_type = "tnt"
    attribute_map = {"outer_dim": "hidden_size", "depth": "depths", "outer_heads": "num_heads"}

    patch_size: int = 16
    inner_stride: int = 4
    inner_dim: int = 24
    hidden_size: int = 384
    depths: int = 12
    inner_heads: int = 4
    num_heads: int = 6
    mlp_ratio: float | int = 4
    qkv_bias: bool = False
    se_reduction: int | None = None
    inner_blocks: list[int] | tuple[int, ...] | None = None
    legacy: bool = False
    global_pool: str = "token"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_divides("inner_heads", self.inner_dim)
        self.check_divides("num_heads", self.hidden_size)
        patch, stride, depth = self.patch_size, self.inner_stride, self.depths
        self.require(stride > 0, f"inner_stride must be at least 1, not {stride}")
        told = (
            f"the legacy form needs an inner_stride that divides patch_size {patch}, not {stride}"
        )
        self.require(not self.legacy or patch % stride == 0, told)
        for block in self.inner_blocks or ():
            counted = 1 <= block <= depth
            self.require(counted, f"inner_blocks are counted from 1 to {depth}, not {block}")
        self.check_size(*self.size)


class TNTForImageClassification(TokenClassifier):
    """A TNT with a classifier on its class token.

    Images of another size than the config's get the sentences' positions resized. The released
    weights expect pixels with mean and deviation 0.5.

    Example:
        >>> sizes = {"image_size": 32, "hidden_size": 24, "num_heads": 3, "depths": 1}
        >>> config = TNTConfig(**sizes, inner_dim=4, inner_heads=2)
        >>> TNTForImageClassification(config).num_features
        24
    """

    image_free = ("word_positions",)

    def __init__(self, config: TNTConfig) -> None:
        super().__init__(config)
        dim, patch = config.hidden_size, config.patch_size
        channels, stride = config.num_channels, config.inner_stride
        self.stem = PixelEmbed(
            channels, config.inner_dim, patch=patch, stride=stride, whole=config.legacy
        )
        side = self.stem.side
        self.word_positions = LearnedTable(config.inner_dim, (side, side))
        self.fuse = PixelToPatch(config.inner_dim, self.stem.pixel_tokens, dim, bias=True)
        self.begin_stream(dim)
        words = self.stem.pixel_tokens
        self.blocks = BlockSequence(
            [_nested(config, b, words, rate) for b, rate in enumerate(config.rates[0])]
        )
        self.finish(nn.LayerNorm(dim), dim, [dim] * config.depths, patch)

    def embed(self, pixel_values: Tensor) -> tuple[tuple[Tensor, Tensor], SpatialShape]:
        patch, side = self.config.patch_size, self.stem.side
        spatial_shape = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
        pixel_tokens = self.word_positions(self.stem(pixel_values), (side, side))
        sentences = self.prefix(self.fuse(pixel_tokens, pixel_values.shape[0]))
        return (pixel_tokens, self.drop(self.positions(sentences, spatial_shape))), spatial_shape

    def tokens(self, stream: tuple[Tensor, Tensor]) -> Tensor:
        return stream[1]

    @classmethod
    def state_dict_converters(cls, config: TNTConfig) -> dict[str, StateDictConverter]:
        maps = {}
        if not config.legacy:
            ignored = ("outer_tokens",)
            maps["official"] = _converter(config, _OFFICIAL, _OFFICIAL_BLOCK, ignored=ignored)
        if config.se_reduction is None:
            maps["timm"] = _timm(config)
        return maps

    @classmethod
    def config_from_state_dict(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Whether a file has the legacy form: no norm stands behind its blocks' projections."""
        projections = (re.fullmatch(r"(blocks\.[^.]+)\.proj\.weight", name) for name in tensors)
        blocks = {found[1] for found in projections if found}
        last = ("proj_norm2", "norm2_proj")
        normed = {b for b in blocks if any(f"{b}.{norm}.weight" in tensors for norm in last)}
        if normed and normed != blocks:
            raise InvalidInputError(
                f"the file mixes two forms of TNT: {min(normed)} has a norm behind its "
                f"projection, {min(blocks - normed)} has none"
            )
        return {"legacy": not normed} if blocks else {}


def _nested(config: TNTConfig, index: int, pixel_tokens: int, rate: float) -> NestedBlock:
    inner = fuse = None
    if config.inner_blocks is None or index + 1 in config.inner_blocks:
        inner = _block(config, config.inner_dim, config.inner_heads, rate)
        fuse = PixelToPatch(
            config.inner_dim,
            pixel_tokens,
            config.hidden_size,
            bias=config.legacy,
            per_word=config.legacy,
            last_norm=not config.legacy,
        )
    gate = None
    if config.se_reduction is not None:
        gate = SqueezeExcite(
            config.hidden_size,
            config.se_reduction,
            gate="tanh",
            bias=True,
            norm=nn.LayerNorm(config.hidden_size),
            residual=True,
        )
    outer = _block(config, config.hidden_size, config.num_heads, rate, gate)
    return NestedBlock(inner, fuse, outer)


def _block(
    config: TNTConfig, dim: int, heads: int, rate: float, gate: nn.Module | None = None
) -> Block:
    attention = SelfAttention(dim, heads, qkv_bias=config.qkv_bias, storage="qk_v")
    mlp = Mlp(dim, int(dim * config.mlp_ratio), gate=gate)
    return token_block(dim, attention, config.mlp_ratio, rate, mlp=mlp)


# Names in other libraries
_FUSE = {"proj_norm1": "fuse.norm1", "proj": "fuse.proj", "proj_norm2": "fuse.norm2"}
_OFFICIAL = {
    **_FUSE,
    "patch_embed.proj": "stem.conv",
    "inner_pos": "word_positions.table",
    "outer_pos": "positions.table",
}
_OFFICIAL_BLOCK = {
    **{f"{s}_{n}": f"{s}.{n}" for s in ("inner", "outer") for n in ("norm1", "norm2", "mlp")},
    "inner_attn": "inner.mixer",
    "outer_attn": "outer.mixer",
    **_FUSE,
    "se_layer.fc.0": "outer.mlp.gate.norm",
    "se_layer.fc.1": "outer.mlp.gate.fc1",
    "se_layer.fc.3": "outer.mlp.gate.fc2",
}
_TIMM_FUSE = {"norm1_proj": "fuse.norm1", "proj": "fuse.proj", "norm2_proj": "fuse.norm2"}
_TIMM = {
    **_TIMM_FUSE,
    "pixel_embed.proj": "stem.conv",
    "pixel_pos": "word_positions.table",
    "patch_pos": "positions.table",
}
_TIMM_BLOCK = {
    "norm_in": "inner.norm1",
    "attn_in": "inner.mixer",
    "norm_mlp_in": "inner.norm2",
    "mlp_in": "inner.mlp",
    **_TIMM_FUSE,
    "norm_out": "outer.norm1",
    "attn_out": "outer.mixer",
    "norm_mlp": "outer.norm2",
    "mlp": "outer.mlp",
}


def _converter(config: TNTConfig, names: Names, in_block: Names, **more: Any) -> StateDictConverter:
    found = {"cls_token": "prefix.cls_token", "norm": "norm", "head": "head.fc", **names}
    for block in (f"blocks.{b}" for b in range(config.depths)):
        found |= under(block, block, in_block)
    return StateDictConverter(found, **more)


def _timm(config: TNTConfig) -> StateDictConverter:
    side = -(-config.patch_size // config.inner_stride)
    words = (
        lambda grid: grid.flatten(2).transpose(1, 2),
        lambda table: table.transpose(1, 2).unflatten(2, (side, side)),
    )
    return _converter(config, _TIMM, _TIMM_BLOCK, changes={"word_positions.table": words})


_DROP = {"drop_path_rate": 0.1}
_TINY = {"inner_dim": 12, "inner_heads": 2, "hidden_size": 192, "num_heads": 3, **_DROP}
_SMALL = {"inner_dim": 24, "inner_heads": 4, "hidden_size": 384, "num_heads": 6, **_DROP}
_BASE = {"inner_dim": 40, "inner_heads": 4, "hidden_size": 640, "num_heads": 10, **_DROP}

VARIANTS: dict[str, dict[str, Any]] = {
    "tnt_ti_patch16_224": _TINY,
    "tnt_s_patch16_224": _SMALL,
    "tnt_b_patch16_224": _BASE,
    "tnt_s_patch16_384": {**_SMALL, "image_size": 384},
    "tnt_s_legacy_patch16_224": {**_SMALL, "legacy": True},
    "tnt_s_se_patch16_224": {**_SMALL, "se_reduction": 4},
    "tnt_s_1_patch16_224": {**_SMALL, "inner_blocks": [1, 4, 8, 12]},
    "tnt_s_2_patch16_224": {**_SMALL, "inner_blocks": [1, 6, 12]},
    "tnt_s_3_patch16_224": {**_SMALL, "inner_blocks": [1, 6]},
    "tnt_s_4_patch16_224": {**_SMALL, "inner_blocks": [1]},
    "tnt_s_words64_patch16_224": {**_SMALL, "inner_stride": 2, "inner_dim": 6, "inner_heads": 2},
    "tnt_s_words4_patch16_224": {**_SMALL, "inner_stride": 8, "inner_dim": 96},
}

register_architecture(TNTConfig, TNTForImageClassification, VARIANTS)
