"""MetaFormer and PoolFormer (arXiv 2111.11418): any token mixer in a four-stage pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import start_normal
from modwright.nn.block import Block, BlockSequence, Stage
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.grid_positions import LearnedGrid
from modwright.nn.layouts import SpatialShape
from modwright.nn.norms2d import make_norm
from modwright.nn.stems.conv_stem import Conv, ConvStem, Downsample
from modwright.nn.token_mixers.pooling import (
    DepthwiseConvMixer,
    IdentityMixer,
    Pooling,
    RandomMixing,
    SpatialFC,
)
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["MIXERS", "VARIANTS", "MetaFormerConfig", "MetaFormerForImageClassification"]


class MetaFormerConfig(ImageConfig):
    """Structure of a MetaFormer.

    Attributes:
        token_mixers: a name of :data:`MIXERS` per stage.
        mlp_ratios: neurons per channel, per stage.
        norm: "gn1" (over channels and positions), "ln" (over channels), "bn2d" or "none".
        positions: whether a stage adds learned positions. They, "spatial_fc" and "random" are built
            for ``image_size``; positions are resized to other sizes.
        pool_size: of the pooling mixer.
        attention_head_dim: channels of a head of the attention mixer.
        stem: kernel, stride and padding of the convolution that takes the image in.
        act: activation of the MLP.
    """

    model_type = "metaformer"
    attribute_map = {"widths": "hidden_sizes"}

    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    token_mixers: Any = "pool"
    mlp_ratios: Any = 4
    norm: str = "gn1"
    positions: Any = False
    pool_size: int = 3
    attention_head_dim: int = 32
    stem: list[int] | tuple[int, ...] = (7, 4, 2)
    layer_scale_init: float | None = 1e-5
    act: str = "gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.per_stage(len(self.depths), "hidden_sizes", "token_mixers", "mlp_ratios", "positions")
        self.check_names(token_mixers=MIXERS)


def _attention(config: MetaFormerConfig, dim: int, places: int) -> nn.Module:
    config.check_divides("attention_head_dim", dim)
    return SelfAttention(dim, dim // config.attention_head_dim, qkv_bias=False)


MIXERS: dict[str, Callable[[MetaFormerConfig, int, int], nn.Module]] = {
    "pool": lambda config, dim, places: Pooling(config.pool_size),
    "identity": lambda config, dim, places: IdentityMixer(),
    "attention": _attention,
    "spatial_fc": lambda config, dim, places: SpatialFC(places),
    "random": lambda config, dim, places: RandomMixing(places),
    "depthwise": lambda config, dim, places: DepthwiseConvMixer(dim),
}


class MetaFormerForImageClassification(PyramidClassifier):
    """The MetaFormer pyramid with a classifier.

    Example:
        >>> config = MetaFormerConfig(depths=[1, 1], hidden_sizes=[8, 16])
        >>> MetaFormerForImageClassification(config).num_features
        16
    """

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__(config)
        widths = config.hidden_sizes
        self.stem = ConvStem(config.num_channels, [Conv(widths[0], *config.stem)])
        self.stages = nn.ModuleList(_stage(config, s, row) for s, row in enumerate(config.rates))
        norm = make_norm(config.norm, widths[-1], layout="map")
        self.finish(norm, widths[-1], widths, config.stem[1])

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        conv.reset_parameters()
        if conv.kernel_size == (1, 1):  # a linear layer of the MLP
            start_normal(conv)

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {"poolformer": _POOLFORMER}

    @classmethod
    def state_dict_converters(cls, config: MetaFormerConfig) -> dict[str, StateDictConverter]:
        found = {"official": _official(config)}
        if set(config.token_mixers) == {"pool"} and config.norm == "gn1":
            found["transformers"] = _transformers(config)
        return found


def _stage(config: MetaFormerConfig, s: int, rates: list[float]) -> Stage:
    dim, spatial_shape = config.hidden_sizes[s], _spatial_shape(config, s)
    blocks: list[nn.Module] = [
        Block(
            dim,
            MIXERS[config.token_mixers[s]](config, dim, math.prod(spatial_shape)),
            Mlp(dim, int(dim * config.mlp_ratios[s]), act=config.act, layout="map"),
            partial(make_norm, config.norm, dim, layout="map"),
            layout="map",
            drop_path=rate,
            layer_scale=config.layer_scale_init,
        )
        for rate in rates
    ]
    return Stage(
        BlockSequence(blocks),
        downsample=Downsample(config.hidden_sizes[s - 1], dim) if s else None,
        positions=LearnedGrid(dim, spatial_shape) if config.positions[s] else None,
    )


def _spatial_shape(config: MetaFormerConfig, stage: int) -> SpatialShape:
    """Positions of a stage for the image size of the config."""
    kernel, stride, padding = config.stem
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in config.size)
    for _ in range(stage):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    return height, width


# Names in other libraries
_MIXER_TENSORS = {"attention": ("qkv", "proj"), "spatial_fc": ("fc",), "random": ("matrix",)}
_SCALES = {"layer_scale_1": "ls1.gamma", "layer_scale_2": "ls2.gamma"}
_POOL_BLOCK = {"before_norm": "norm1", "after_norm": "norm2"}
_POOL_BLOCK |= {"output.conv1": "mlp.fc1", "output.conv2": "mlp.fc2", **_SCALES}


def _official(config: MetaFormerConfig) -> StateDictConverter:
    """sail-sg/poolformer: stages, positions and downsampling share one list, ``network``."""
    names: dict[str, str] = {"patch_embed.proj": "stem.conv0", "norm": "norm", "head": "head.fc"}
    index = 0
    for s, depth in enumerate(config.depths):
        if s:
            names[f"network.{index}.proj"] = f"stages.{s}.downsample.conv"
            index += 1
        if config.positions[s]:
            names[f"network.{index}.pos_embed"] = f"stages.{s}.positions.table"
            index += 1
        in_block = {**same("norm1", "norm2", "mlp.fc1", "mlp.fc2"), **_SCALES}
        for name in _MIXER_TENSORS.get(config.token_mixers[s], ()):
            in_block[f"token_mixer.{name}"] = f"mixer.{name}"
        for b in range(depth):
            names |= under(f"network.{index}.{b}", f"stages.{s}.blocks.{b}", in_block)
        index += 1
    return StateDictConverter(names)


def _transformers(config: MetaFormerConfig) -> StateDictConverter:
    """transformers' PoolFormer, which has pooling in all stages."""
    start = "poolformer.encoder"
    names = {"poolformer.norm": "norm", "norm": "norm", "classifier": "head.fc"}
    names[f"{start}.patch_embeddings.0.projection"] = "stem.conv0"
    for s, depth in enumerate(config.depths):
        if s:
            names[f"{start}.patch_embeddings.{s}.projection"] = f"stages.{s}.downsample.conv"
        for b in range(depth):
            names |= under(f"{start}.block.{s}.{b}", f"stages.{s}.blocks.{b}", _POOL_BLOCK)
    return StateDictConverter(names)


def _poolformer_fields(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The stem, and that all mixers are pooling; later convolutions have one shape here."""
    rows = [theirs[key] for key in ("patch_sizes", "strides", "padding")]
    stages = len(theirs["depths"])
    if any(tuple(row) != (3, 2, 1) for row in list(zip(*rows))[1:stages]):
        raise InvalidInputError(
            f"patch_sizes, strides and padding are {rows}; after the first 3, 2 and 1 are computed"
        )
    scale = theirs["layer_scale_init_value"] if theirs["use_layer_scale"] else None
    fixed = {"token_mixers": "pool", "norm": "gn1", "positions": False}
    return {**fixed, "stem": [row[0] for row in rows], "layer_scale_init": scale}


_POOLFORMER = ConfigMap(
    "PoolFormerForImageClassification",
    same=("num_channels", "hidden_sizes", "depths", "pool_size", "drop_path_rate"),
    renamed={"mlp_ratio": "mlp_ratios", "hidden_act": "act"},
    made=_poolformer_fields,
    read=("patch_sizes", "strides", "padding", "use_layer_scale", "layer_scale_init_value"),
    harmless=("num_encoder_blocks", "patch_size", "stride"),  # nothing in transformers reads them
)

_SMALL = {"hidden_sizes": (64, 128, 320, 512), "layer_scale_init": 1e-5}
_MEDIUM = {"hidden_sizes": (96, 192, 384, 768), "layer_scale_init": 1e-6}
_S12 = {"depths": (2, 2, 6, 2), **_SMALL}


def _ablation(*mixers: str, norm: str = "gn1", positions: int | None = None) -> dict[str, Any]:
    at = tuple(s == positions for s in range(4))
    return {**_S12, "token_mixers": mixers, "norm": norm, "positions": at}


_P, _A, _F = "pool", "attention", "spatial_fc"
_36 = {"depths": (6, 6, 18, 6)}

VARIANTS: dict[str, dict[str, Any]] = {
    "poolformer_s12": {**_S12, "drop_path_rate": 0.1},
    "poolformer_s24": {**_SMALL, "depths": (4, 4, 12, 4), "drop_path_rate": 0.1},
    "poolformer_s36": {**_SMALL, **_36, "layer_scale_init": 1e-6, "drop_path_rate": 0.2},
    "poolformer_m36": {**_MEDIUM, **_36, "drop_path_rate": 0.3},
    "poolformer_m48": {**_MEDIUM, "depths": (8, 8, 24, 8), "drop_path_rate": 0.4},
    "metaformer_id_s12": _ablation(*["identity"] * 4),
    "metaformer_pppa_s12_224": _ablation(_P, _P, _P, _A, norm="ln", positions=3),
    "metaformer_ppaa_s12_224": _ablation(_P, _P, _A, _A, norm="ln", positions=2),
    "metaformer_pppf_s12_224": _ablation(_P, _P, _P, _F),
    "metaformer_ppff_s12_224": _ablation(_P, _P, _F, _F),
    "metaformer_random_s12_224": _ablation(*["random"] * 4),
    "metaformer_depthwise_s12": _ablation(*["depthwise"] * 4),
}

register_architecture(MetaFormerConfig, MetaFormerForImageClassification, VARIANTS)
