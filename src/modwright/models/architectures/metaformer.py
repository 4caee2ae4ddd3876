"""MetaFormer and PoolFormer (arXiv 2111.11418): any token mixer in a four-stage pyramid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.grid_positions import LearnedGrid
from modwright.nn.layouts import SpatialShape
from modwright.nn.norms2d import make_norm
from modwright.nn.residual import drop_path_rates
from modwright.nn.stage import Stage
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


@strict
class MetaFormerConfig(ImageConfig):
    """Structure of a MetaFormer.

    Attributes:
        depths: blocks per stage.
        hidden_sizes: channels per stage.
        token_mixers: one name of :data:`MIXERS` per stage, or one for all.
        mlp_ratios: neurons per channel, one number per stage, or one for all.
        norm: "gn1" (over channels and places), "ln" (over channels), "bn2d" or "none".
        positions: whether a stage adds learned positions, likewise. They, "spatial_fc" and
            "random" are built for ``image_size``; positions are resized to other sizes.
        pool_size: of the pooling mixer.
        attention_head_dim: channels of a head of the attention mixer.
        stem: kernel, stride and padding of the convolution that takes the image in.
        layer_scale_init: start of the factor per channel; None has none.
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
        for name in self.token_mixers:
            if name not in MIXERS:
                raise unknown_name("token mixer", name, MIXERS)


def _attention(config: MetaFormerConfig, dim: int, spatial_shape: SpatialShape) -> nn.Module:
    if dim % config.attention_head_dim:
        raise InvalidInputError(
            f"attention_head_dim {config.attention_head_dim} does not divide a width of {dim}"
        )
    return SelfAttention(dim, dim // config.attention_head_dim, qkv_bias=False)


MIXERS: dict[str, Callable[[MetaFormerConfig, int, SpatialShape], nn.Module]] = {
    "pool": lambda config, dim, spatial_shape: Pooling(config.pool_size),
    "identity": lambda config, dim, spatial_shape: IdentityMixer(),
    "attention": _attention,
    "spatial_fc": lambda config, dim, spatial_shape: SpatialFC(spatial_shape[0] * spatial_shape[1]),
    "random": lambda config, dim, spatial_shape: RandomMixing(spatial_shape[0] * spatial_shape[1]),
    "depthwise": lambda config, dim, spatial_shape: DepthwiseConvMixer(dim),
}


class MetaFormerForImageClassification(PyramidClassifier):
    """The MetaFormer pyramid with a classifier.

    Example:
        >>> import torch
        >>> config = MetaFormerConfig(depths=[1, 1], hidden_sizes=[8, 16], num_labels=5)
        >>> model = MetaFormerForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 48)).logits.shape
        torch.Size([1, 5])
    """

    config_class = MetaFormerConfig

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__(config)
        widths = config.hidden_sizes
        self.stem = ConvStem(config.num_channels, [Conv(widths[0], *config.stem)])
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nn.ModuleList(_stage(config, s, rates[s]) for s in range(len(widths)))
        self.norm = make_norm(config.norm, widths[-1], layout="map")
        self.head = self.make_head(widths[-1])
        self.describe_features(widths, config.stem[1])
        self.post_init()

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        conv.reset_parameters()
        if conv.kernel_size == (1, 1):  # a linear layer of the MLP
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

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
    dim = config.hidden_sizes[s]
    spatial_shape = _spatial_shape(config, s)
    blocks: list[nn.Module] = [
        Block(
            dim,
            MIXERS[config.token_mixers[s]](config, dim, spatial_shape),
            Mlp(dim, int(dim * config.mlp_ratios[s]), act=config.act, layout="map"),
            lambda: make_norm(config.norm, dim, layout="map"),
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
    """Places of a stage for the image size of the config."""
    kernel, stride, padding = config.stem
    sides = [(side + 2 * padding - kernel) // stride + 1 for side in config.size]
    for _ in range(stage):
        sides = [(side - 1) // 2 + 1 for side in sides]
    return sides[0], sides[1]


# Names in other libraries

_IN_BLOCK = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
_MIXER_TENSORS = {"attention": ("qkv", "proj"), "spatial_fc": ("fc",), "random": ("matrix",)}


def _official(config: MetaFormerConfig) -> StateDictConverter:
    """sail-sg/poolformer: stages, positions and downsampling share one list, ``network``."""
    rules = [Rename("patch_embed.proj", "stem.conv0")]
    index = 0
    for s, depth in enumerate(config.depths):
        if s:
            rules.append(Rename(f"network.{index}.proj", f"stages.{s}.downsample.conv"))
            index += 1
        if config.positions[s]:
            rules.append(Rename(f"network.{index}.pos_embed", f"stages.{s}.positions.table"))
            index += 1
        for b in range(depth):
            theirs, ours = f"network.{index}.{b}", f"stages.{s}.blocks.{b}"
            rules += [Rename(f"{theirs}.{name}", f"{ours}.{name}") for name in _IN_BLOCK]
            for name in _MIXER_TENSORS.get(config.token_mixers[s], ()):
                rules.append(Rename(f"{theirs}.token_mixer.{name}", f"{ours}.mixer.{name}"))
            for half in (1, 2):
                rules.append(Rename(f"{theirs}.layer_scale_{half}", f"{ours}.ls{half}.gamma"))
        index += 1
    rules += [Rename("norm", "norm"), Rename("head", "head.fc")]
    return StateDictConverter(tuple(rules))


def _transformers(config: MetaFormerConfig) -> StateDictConverter:
    """transformers' PoolFormer, which has pooling in all stages."""
    start = "poolformer.encoder"
    rules = [Rename(f"{start}.patch_embeddings.0.projection", "stem.conv0")]
    names = {"norm1": "before_norm", "norm2": "after_norm"}
    names |= {"mlp.fc1": "output.conv1", "mlp.fc2": "output.conv2"}
    for s, depth in enumerate(config.depths):
        if s:
            theirs = f"{start}.patch_embeddings.{s}.projection"
            rules.append(Rename(theirs, f"stages.{s}.downsample.conv"))
        for b in range(depth):
            block, ours = f"{start}.block.{s}.{b}", f"stages.{s}.blocks.{b}"
            rules += [
                Rename(f"{block}.{theirs}", f"{ours}.{name}") for name, theirs in names.items()
            ]
            for half in (1, 2):
                rules.append(Rename(f"{block}.layer_scale_{half}", f"{ours}.ls{half}.gamma"))
    rules += [
        Rename("poolformer.norm", "norm"),
        Rename("norm", "norm"),
        Rename("classifier", "head.fc"),
    ]
    return StateDictConverter(tuple(rules))


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
    renamed={
        "num_channels": "num_channels",
        "hidden_sizes": "hidden_sizes",
        "depths": "depths",
        "mlp_ratio": "mlp_ratios",
        "pool_size": "pool_size",
        "hidden_act": "act",
        "drop_path_rate": "drop_path_rate",
    },
    made=_poolformer_fields,
    read=("patch_sizes", "strides", "padding", "use_layer_scale", "layer_scale_init_value"),
    harmless=("num_encoder_blocks", "patch_size", "stride"),  # nothing in transformers reads them
    architectures=("PoolFormerForImageClassification",),
)

_SMALL = {"hidden_sizes": (64, 128, 320, 512), "layer_scale_init": 1e-5}
_MEDIUM = {"hidden_sizes": (96, 192, 384, 768), "layer_scale_init": 1e-6}
_S12 = {"depths": (2, 2, 6, 2), **_SMALL}


def _ablation(*mixers: str, norm: str = "gn1", positions: int | None = None) -> dict[str, Any]:
    at = tuple(s == positions for s in range(4))
    return {**_S12, "token_mixers": mixers, "norm": norm, "positions": at}


_P, _A, _F = "pool", "attention", "spatial_fc"

VARIANTS: dict[str, dict[str, Any]] = {
    "poolformer_s12": {**_S12, "drop_path_rate": 0.1},
    "poolformer_s24": {**_SMALL, "depths": (4, 4, 12, 4), "drop_path_rate": 0.1},
    "poolformer_s36": {
        **_SMALL,
        "depths": (6, 6, 18, 6),
        "layer_scale_init": 1e-6,
        "drop_path_rate": 0.2,
    },
    "poolformer_m36": {**_MEDIUM, "depths": (6, 6, 18, 6), "drop_path_rate": 0.3},
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
