"""The plain vision Transformer (arXiv 2010.11929) in the sizes of DeiT (arXiv 2012.12877)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import token_block
from modwright.nn.block import BlockSequence
from modwright.nn.heads import ClassifierHead, DistilledHead
from modwright.nn.stems.conv_stem import Conv, ConvStem
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = [
    "IN_MEMORY",
    "VARIANTS",
    "VisionTransformerConfig",
    "VisionTransformerForImageClassification",
    "in_files",
]


class VisionTransformerConfig(ImageConfig):
    """Structure of a vision Transformer.

    Attributes:
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
        self.check_divides("num_heads", self.hidden_size)
        self.check_size(*self.size)

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
        >>> sizes = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> VisionTransformerForImageClassification(VisionTransformerConfig(**sizes)).num_features
        16
    """

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        dim, patch = config.hidden_size, config.patch_size
        self.stem = ConvStem(config.num_channels, [Conv(dim, patch, patch)])
        self.begin_stream(dim, config.prefix_names)
        heads, eps = config.num_heads, config.layer_norm_eps
        self.blocks = BlockSequence()
        for rate in config.rates[0]:
            attention = SelfAttention(dim, heads, qkv_bias=config.qkv_bias)
            self.blocks.append(token_block(dim, attention, config.mlp_ratio, rate, eps=eps))
        head = DistilledHead if config.distilled else ClassifierHead
        self.finish(nn.LayerNorm(dim, eps=eps), dim, [dim] * config.depths, patch, head)

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {
            "vit": _config_map("ViTForImageClassification", False),
            "deit": _config_map("DeiTForImageClassificationWithTeacher", True),
        }

    @classmethod
    def state_dict_converters(
        cls, config: VisionTransformerConfig
    ) -> dict[str, StateDictConverter]:
        return {
            "official": _official(config),
            "transformers": _transformers(config, "layers", IN_MEMORY),
            "transformers_files": _transformers(
                config, "encoder.layer", in_files("attention.attention")
            ),
        }


def _official(config: VisionTransformerConfig) -> StateDictConverter:
    """facebookresearch/deit and timm."""
    names = {"patch_embed.proj": "stem.conv0", "pos_embed": "positions.table"}
    names |= {"norm": "norm", "head": "head.fc"}
    names |= {name: f"prefix.{name}" for name in config.prefix_names}
    if config.distilled:
        names["head_dist"] = "head.fc_distilled"
    for b in range(config.depths):
        block = f"blocks.{b}"
        names |= under(block, block, {**same("norm1", "norm2", "mlp"), "attn": "mixer"})
    return StateDictConverter(names)


_NORMS = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
IN_MEMORY: dict[Any, str] = {
    **_NORMS,
    "mlp": "mlp",
    "attention.o_proj": "mixer.proj",
    tuple(f"attention.{letter}_proj" for letter in "qkv"): "mixer.qkv",
}


def in_files(maps: str) -> dict[Any, str]:
    """Names of a layer in files, where ``maps`` holds those to queries, keys and values."""
    return {
        **_NORMS,
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "attention.output.dense": "mixer.proj",
        tuple(f"{maps}.{name}" for name in ("query", "key", "value")): "mixer.qkv",
    }


def _transformers(
    config: VisionTransformerConfig, layers: str, in_block: Mapping[Any, str]
) -> StateDictConverter:
    """transformers' ViT, or its DeiT where there are two classifiers.

    Its files, and the live models of its older versions, have other names than the live models of
    its newer ones.
    """
    start = "deit" if config.distilled else "vit"
    names: dict[Any, str] = {
        f"{start}.embeddings.patch_embeddings.projection": "stem.conv0",
        f"{start}.embeddings.position_embeddings": "positions.table",
        f"{start}.embeddings.cls_token": "prefix.cls_token",
        f"{start}.layernorm": "norm",
        "cls_classifier" if config.distilled else "classifier": "head.fc",
    }
    if config.distilled:
        names[f"{start}.embeddings.distillation_token"] = "prefix.dist_token"
        names["distillation_classifier"] = "head.fc_distilled"
    for b in range(config.depths):
        names |= under(f"{start}.{layers}.{b}", f"blocks.{b}", in_block)
    return StateDictConverter(names)


def _made(theirs: Mapping[str, Any], distilled: bool) -> dict[str, Any]:
    inner, dim = theirs["intermediate_size"], theirs["hidden_size"]
    ratio = inner / dim
    if int(dim * ratio) < inner:  # the ratio was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return {"mlp_ratio": ratio, "distilled": distilled, "global_pool": "token"}


def _config_map(architecture: str, distilled: bool) -> ConfigMap:
    return ConfigMap(
        architecture,
        same=("image_size", "patch_size", "num_channels", "qkv_bias", "layer_norm_eps"),
        renamed={
            "hidden_size": "hidden_size",
            "num_hidden_layers": "depths",
            "num_attention_heads": "num_heads",
        },
        only={"hidden_act": "gelu"},
        made=partial(_made, distilled=distilled),
        read=("intermediate_size",),
        harmless=("pooler_act", "pooler_output_size"),  # a classifier has no pooler
    )


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
