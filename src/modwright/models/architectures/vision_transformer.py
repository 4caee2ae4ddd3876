"""The plain vision Transformer (arXiv 2010.11929) in the sizes of DeiT (arXiv 2012.12877)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import Concat, Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.heads import ClassifierHead, DistilledHead
from modwright.nn.layouts import SpatialShape, to_tokens
from modwright.nn.prefix_tokens import PrefixTokens
from modwright.nn.residual import drop_path_rates
from modwright.nn.stems.conv_stem import Conv, ConvStem
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["VARIANTS", "VisionTransformerConfig", "VisionTransformerForImageClassification"]


@strict
class VisionTransformerConfig(ImageConfig):
    """Structure of a vision Transformer.

    Attributes:
        patch_size: side of a patch in pixels; it divides the image's sides.
        hidden_size: channels.
        depths: blocks.
        num_heads: heads of each block.
        mlp_ratio: neurons per channel.
        qkv_bias: biases of the maps to queries, keys and values.
        layer_norm_eps: of all norms.
        distilled: a second token, which learns from a teacher's answers, and a second classifier.
    """

    model_type = "vision_transformer"
    attribute_map = {"embed_dim": "hidden_size", "depth": "depths"}

    patch_size: int = 16
    hidden_size: int = 768
    depths: int = 12
    num_heads: int = 12
    mlp_ratio: float | int = 4
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    distilled: bool = False
    global_pool: str = "token"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads:
            raise InvalidInputError(
                f"num_heads {self.num_heads} does not divide a hidden_size of {self.hidden_size}"
            )
        self.check_size(*self.size)

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that patches do not cut evenly."""
        self.check_multiples(self.patch_size, height, width)

    @property
    def prefix_names(self) -> list[str]:
        """Names of the tokens that stand for no patch."""
        return ["cls_token", "dist_token"] if self.distilled else ["cls_token"]


class VisionTransformerForImageClassification(TokenClassifier):
    """A vision Transformer with a classifier on its class token, or on that and a second one.

    The second classifier's answer counts as much as the first's;
    :meth:`modwright.nn.heads.DistilledHead.both` gives them apart, as training with a teacher
    needs them.

    Example:
        >>> import torch
        >>> fields = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> config = VisionTransformerConfig(**fields, num_labels=5)
        >>> model = VisionTransformerForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    config_class = VisionTransformerConfig

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        dim, patch = config.hidden_size, config.patch_size
        height, width = config.size
        names = config.prefix_names
        self.num_prefix_tokens = len(names)
        self.stem = ConvStem(config.num_channels, [Conv(dim, patch, patch)])
        self.prefix = PrefixTokens(dim, names)
        self.positions = LearnedTable(dim, (height // patch, width // patch), prefix=len(names))
        self.drop = nn.Dropout(config.drop_rate)
        rates = drop_path_rates(config.drop_path_rate, [config.depths])[0]
        self.blocks = BlockSequence([_block(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        head = DistilledHead if config.distilled else ClassifierHead
        self.head = head(
            dim,
            config.num_labels,
            pool=config.global_pool,
            prefix=len(names),
            drop=config.drop_rate,
        )
        self.describe_features(dim, patch, config.depths)
        self.post_init()

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        self.config.check_size(*pixel_values.shape[2:])

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, SpatialShape]:
        patches = self.stem(pixel_values)
        spatial_shape = (patches.shape[2], patches.shape[3])
        tokens = self.prefix(to_tokens(patches))
        return self.drop(self.positions(tokens, spatial_shape)), spatial_shape

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {"vit": _VIT, "deit": _DEIT}

    @classmethod
    def state_dict_converters(
        cls, config: VisionTransformerConfig
    ) -> dict[str, StateDictConverter]:
        return {
            "official": _official(config),
            "transformers": _transformers(config, "layers", _IN_MEMORY),
            "transformers_files": _transformers(config, "encoder.layer", _IN_FILES),
        }


def _block(config: VisionTransformerConfig, rate: float) -> Block:
    dim = config.hidden_size
    return Block(
        dim,
        SelfAttention(dim, config.num_heads, qkv_bias=config.qkv_bias),
        Mlp(dim, int(dim * config.mlp_ratio)),
        lambda: nn.LayerNorm(dim, eps=config.layer_norm_eps),
        drop_path=rate,
    )


# Names in other libraries


def _official(config: VisionTransformerConfig) -> StateDictConverter:
    """facebookresearch/deit and timm."""
    rules = [Rename("patch_embed.proj", "stem.conv0"), Rename("pos_embed", "positions.table")]
    rules += [Rename(name, f"prefix.{name}") for name in config.prefix_names]
    for b in range(config.depths):
        block = f"blocks.{b}"
        rules += [
            Rename(f"{block}.{part}", f"{block}.{part}") for part in ("norm1", "norm2", "mlp")
        ]
        rules.append(Rename(f"{block}.attn", f"{block}.mixer"))
    rules += [Rename("norm", "norm"), Rename("head", "head.fc")]
    if config.distilled:
        rules.append(Rename("head_dist", "head.fc_distilled"))
    return StateDictConverter(tuple(rules))


_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_IN_MEMORY: dict[str, str | tuple[str, ...]] = {
    **_NORMS,
    "mlp": "mlp",
    "mixer.proj": "attention.o_proj",
    "mixer.qkv": tuple(f"attention.{letter}_proj" for letter in "qkv"),
}
_IN_FILES: dict[str, str | tuple[str, ...]] = {
    **_NORMS,
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "mixer.proj": "attention.output.dense",
    "mixer.qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
}


def _transformers(
    config: VisionTransformerConfig, layers: str, names: Mapping[str, str | tuple[str, ...]]
) -> StateDictConverter:
    """transformers' ViT, or its DeiT where there are two classifiers.

    Its files, and the live models of its older versions, have other names than the live models of
    its newer ones.
    """
    start = "deit" if config.distilled else "vit"
    rules = [
        Rename(f"{start}.embeddings.patch_embeddings.projection", "stem.conv0"),
        Rename(f"{start}.embeddings.position_embeddings", "positions.table"),
        Rename(f"{start}.embeddings.cls_token", "prefix.cls_token"),
        Rename(f"{start}.layernorm", "norm"),
    ]
    if config.distilled:
        rules += [
            Rename(f"{start}.embeddings.distillation_token", "prefix.dist_token"),
            Rename("cls_classifier", "head.fc"),
            Rename("distillation_classifier", "head.fc_distilled"),
        ]
    else:
        rules.append(Rename("classifier", "head.fc"))
    stacks = []
    for b in range(config.depths):
        layer, block = f"{start}.{layers}.{b}", f"blocks.{b}"
        for ours, theirs in names.items():
            if isinstance(theirs, str):
                rules.append(Rename(f"{layer}.{theirs}", f"{block}.{ours}"))
            else:
                maps = tuple(f"{layer}.{name}" for name in theirs)
                stacks.append(Concat(maps, f"{block}.{ours}"))
    return StateDictConverter(tuple(rules), stacks=tuple(stacks))


def _made(theirs: Mapping[str, Any], distilled: bool) -> dict[str, Any]:
    inner, dim = theirs["intermediate_size"], theirs["hidden_size"]
    ratio = inner / dim
    if int(dim * ratio) < inner:  # the ratio was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return {"mlp_ratio": ratio, "distilled": distilled, "global_pool": "token"}


def _config_map(architecture: str, distilled: bool) -> ConfigMap:
    same = ("image_size", "patch_size", "num_channels", "qkv_bias", "layer_norm_eps")
    return ConfigMap(
        renamed={
            **{key: key for key in same},
            "hidden_size": "hidden_size",
            "num_hidden_layers": "depths",
            "num_attention_heads": "num_heads",
        },
        only={"hidden_act": "gelu"},
        made=partial(_made, distilled=distilled),
        read=("intermediate_size",),
        harmless=(
            *("hidden_dropout_prob", "attention_probs_dropout_prob"),
            *("pooler_act", "pooler_output_size"),  # a classifier has no pooler
        ),
        architectures=(architecture,),
    )


_VIT = _config_map("ViTForImageClassification", False)
_DEIT = _config_map("DeiTForImageClassificationWithTeacher", True)

_DROP = {"drop_path_rate": 0.1}
_TINY = {"hidden_size": 192, "num_heads": 3, **_DROP}
_SMALL = {"hidden_size": 384, "num_heads": 6, **_DROP}
_BASE = {"hidden_size": 768, "num_heads": 12, **_DROP}

VARIANTS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": _TINY,
    "deit_small_patch16_224": _SMALL,
    "deit_base_patch16_224": _BASE,
    "deit_base_patch16_384": {**_BASE, "image_size": 384},
    "deit_tiny_distilled_patch16_224": {**_TINY, "distilled": True},
    "deit_small_distilled_patch16_224": {**_SMALL, "distilled": True},
    "deit_base_distilled_patch16_224": {**_BASE, "distilled": True},
    "deit_base_distilled_patch16_384": {**_BASE, "distilled": True, "image_size": 384},
}

register_architecture(VisionTransformerConfig, VisionTransformerForImageClassification, VARIANTS)
