"""TNT, Transformer in Transformer (arXiv 2103.00112): patches that are sentences of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.layouts import SpatialShape
from modwright.nn.nested_block import NestedBlock, PixelToPatch
from modwright.nn.prefix_tokens import PrefixTokens
from modwright.nn.residual import drop_path_rates
from modwright.nn.squeeze_excite import SqueezeExcite
from modwright.nn.stems.pixel_embed import PixelEmbed
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["VARIANTS", "TNTConfig", "TNTForImageClassification"]


@strict
class TNTConfig(ImageConfig):
    """Structure of a TNT.

    Attributes:
        patch_size: side of a patch in pixels; it divides the image's sides.
        inner_stride: pixels from word to word.
        inner_dim: channels of a word.
        hidden_size: channels of a sentence token.
        depths: blocks.
        inner_heads: heads over the words of a patch.
        num_heads: heads over the sentences.
        mlp_ratio: neurons per channel, of both streams.
        qkv_bias: biases of the maps to queries, keys and values.
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
        for width, heads in (("inner_dim", "inner_heads"), ("hidden_size", "num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise InvalidInputError(
                    f"{heads} {getattr(self, heads)} does not divide {width} {getattr(self, width)}"
                )
        if self.inner_stride < 1:
            raise InvalidInputError(f"inner_stride must be at least 1, not {self.inner_stride}")
        if self.legacy and self.patch_size % self.inner_stride:
            raise InvalidInputError(
                f"the legacy form needs an inner_stride that divides patch_size "
                f"{self.patch_size}, not {self.inner_stride}"
            )
        for block in self.inner_blocks or ():
            if not 1 <= block <= self.depths:
                raise InvalidInputError(
                    f"inner_blocks are counted from 1 to {self.depths}, not {block}"
                )
        self.check_size(*self.size)

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that patches do not fill."""
        if height % self.patch_size or width % self.patch_size:
            raise InvalidInputError(
                f"an image of {height} x {width} is not made of whole patches of "
                f"{self.patch_size} pixels"
            )

    def has_pixel_tokens(self, block: int) -> bool:
        """Whether a block, counted from 0, has an inner stream."""
        return self.inner_blocks is None or block + 1 in self.inner_blocks


class TNTForImageClassification(TokenClassifier):
    """A TNT with a classifier on its class token.

    Images of another size than the config's get the sentences' positions resized. The released
    weights expect pixels with mean and deviation 0.5.

    Example:
        >>> import torch
        >>> fields = {"image_size": 32, "hidden_size": 24, "num_heads": 3, "depths": 1}
        >>> config = TNTConfig(**fields, inner_dim=4, inner_heads=2, num_labels=5)
        >>> model = TNTForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    config_class = TNTConfig
    num_prefix_tokens = 1

    def __init__(self, config: TNTConfig) -> None:
        super().__init__(config)
        dim, patch = config.hidden_size, config.patch_size
        height, width = config.size
        self.stem = PixelEmbed(
            config.num_channels,
            config.inner_dim,
            patch=patch,
            stride=config.inner_stride,
            whole=config.legacy,
        )
        side = self.stem.side
        self.word_positions = LearnedTable(config.inner_dim, (side, side))
        self.fuse = PixelToPatch(config.inner_dim, self.stem.pixel_tokens, dim, bias=True)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedTable(dim, (height // patch, width // patch), prefix=1)
        self.drop = nn.Dropout(config.drop_rate)
        rates = drop_path_rates(config.drop_path_rate, [config.depths])[0]
        self.blocks = BlockSequence(
            [_nested(config, b, self.stem.pixel_tokens, rate) for b, rate in enumerate(rates)]
        )
        self.norm = nn.LayerNorm(dim)
        self.head = self.make_head(dim, prefix=1)
        self.describe_features(dim, patch, config.depths)
        self.post_init()

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        self.config.check_size(*pixel_values.shape[2:])

    def embed(self, pixel_values: Tensor) -> tuple[tuple[Tensor, Tensor], SpatialShape]:
        patch, side = self.config.patch_size, self.stem.side
        spatial_shape = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
        pixel_tokens = self.word_positions(self.stem(pixel_values), (side, side))
        sentences = self.prefix(self.fuse(pixel_tokens, pixel_values.shape[0]))
        return (pixel_tokens, self.drop(self.positions(sentences, spatial_shape))), spatial_shape

    def tokens(self, stream: tuple[Tensor, Tensor]) -> Tensor:
        return stream[1]

    def interpolate_pos_embed(
        self, name: str, table: Tensor, old: SpatialShape | None = None
    ) -> Tensor:
        """Those of sentences; those of words depend on the patch alone, not on the image."""
        fixed = name.startswith("word_positions.")
        return table if fixed else super().interpolate_pos_embed(name, table, old)

    @classmethod
    def state_dict_converters(cls, config: TNTConfig) -> dict[str, StateDictConverter]:
        maps = {}
        if not config.legacy:
            maps["official"] = _names(config, _OFFICIAL, _OFFICIAL_BLOCK, ignored=("outer_tokens",))
        if config.se_reduction is None:
            maps["timm"] = _timm(config)
        return maps

    @classmethod
    def config_from_state_dict(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Whether a file has the legacy form: no norm stands behind its blocks' projections.

        Raises:
            InvalidInputError: some blocks have such a norm, and others do not.
        """
        blocks = {name.rpartition(".proj.")[0] for name in tensors if _is_projection(name)}
        last = ("proj_norm2", "norm2_proj")
        normed = {b for b in blocks if any(f"{b}.{norm}.weight" in tensors for norm in last)}
        if normed and normed != blocks:
            other = sorted(blocks - normed)[0]
            raise InvalidInputError(
                f"the file mixes two forms of TNT: {sorted(normed)[0]} has a norm behind its "
                f"projection, {other} has none"
            )
        return {"legacy": not normed} if blocks else {}


def _is_projection(name: str) -> bool:
    """blocks.B.proj.weight"""
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blocks" and parts[2:] == ["proj", "weight"]


def _nested(config: TNTConfig, index: int, pixel_tokens: int, rate: float) -> NestedBlock:
    inner = fuse = None
    if config.has_pixel_tokens(index):
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
    return Block(dim, attention, mlp, lambda: nn.LayerNorm(dim), drop_path=rate)


# Names in other libraries: ours to theirs

_SHARED = {"prefix.cls_token": "cls_token", "norm": "norm", "head.fc": "head", "fuse.proj": "proj"}
_OFFICIAL = {
    **_SHARED,
    "stem.conv": "patch_embed.proj",
    "word_positions.table": "inner_pos",
    "positions.table": "outer_pos",
    "fuse.norm1": "proj_norm1",
    "fuse.norm2": "proj_norm2",
}
_OFFICIAL_BLOCK = {
    "inner.norm1": "inner_norm1",
    "inner.mixer": "inner_attn",
    "inner.norm2": "inner_norm2",
    "inner.mlp": "inner_mlp",
    "fuse.norm1": "proj_norm1",
    "fuse.proj": "proj",
    "fuse.norm2": "proj_norm2",
    "outer.norm1": "outer_norm1",
    "outer.mixer": "outer_attn",
    "outer.norm2": "outer_norm2",
    "outer.mlp": "outer_mlp",
    "outer.mlp.gate.norm": "se_layer.fc.0",
    "outer.mlp.gate.fc1": "se_layer.fc.1",
    "outer.mlp.gate.fc2": "se_layer.fc.3",
}
_TIMM = {
    **_SHARED,
    "stem.conv": "pixel_embed.proj",
    "positions.table": "patch_pos",
    "fuse.norm1": "norm1_proj",
    "fuse.norm2": "norm2_proj",
}
_TIMM_BLOCK = {
    "inner.norm1": "norm_in",
    "inner.mixer": "attn_in",
    "inner.norm2": "norm_mlp_in",
    "inner.mlp": "mlp_in",
    "fuse.norm1": "norm1_proj",
    "fuse.proj": "proj",
    "fuse.norm2": "norm2_proj",
    "outer.norm1": "norm_out",
    "outer.mixer": "attn_out",
    "outer.norm2": "norm_mlp",
    "outer.mlp": "mlp",
}


def _names(
    config: TNTConfig,
    names: Mapping[str, str],
    in_block: Mapping[str, str],
    more: tuple[Rename, ...] = (),
    ignored: tuple[str, ...] = (),
) -> StateDictConverter:
    rules = [Rename(theirs, ours) for ours, theirs in names.items()]
    for b in range(config.depths):
        rules += [
            Rename(f"blocks.{b}.{theirs}", f"blocks.{b}.{o}") for o, theirs in in_block.items()
        ]
    return StateDictConverter((*rules, *more), ignored=ignored)


def _timm(config: TNTConfig) -> StateDictConverter:
    side = -(-config.patch_size // config.inner_stride)
    places = Rename(
        "pixel_pos",
        "word_positions.table",
        to_ours=lambda spatial_shape: spatial_shape.flatten(2).transpose(1, 2),
        to_theirs=lambda table: table.transpose(1, 2).unflatten(2, (side, side)),
    )
    return _names(config, _TIMM, _TIMM_BLOCK, (places,))


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
