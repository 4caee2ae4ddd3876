"""Swin Transformer (arXiv 2103.14030): attention in windows that move from block to block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modwright.models.architectures.vision_transformer import IN_MEMORY, in_files
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import token_block
from modwright.nn.block import BlockSequence, Stage
from modwright.nn.norms2d import make_norm
from modwright.nn.stems.conv_stem import Conv, ConvStem, PatchMerging
from modwright.nn.token_mixers.window_attention import WindowAttention

__all__ = ["VARIANTS", "SwinTransformerConfig", "SwinTransformerForImageClassification"]


class SwinTransformerConfig(ImageConfig):
    """Structure of a Swin Transformer.

    Attributes:
        embed_dim: channels of the first stage; each stage has twice as many as the one before. As
            in transformers, where ``hidden_size`` of a Swin is the width of its last stage.
        depths: blocks per stage; every second one moves its windows.
        window_size: positions along a side of a window; at most the stage's at ``image_size``.
    """

    model_type = "swin_transformer"

    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.per_stage(len(self.depths), "num_heads")
        self.check_divides("num_heads", *self.hidden_sizes)
        window = self.window_size
        self.require(window > 0, f"window_size must be at least 1, not {window}")
        self.check_size(*self.size)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**s for s in range(len(self.depths))]

    def window(self, stage: int) -> int:
        """Side of a window: that of the config, or of the whole map where it is smaller."""
        sides = (-(-side // (self.patch_size * 2**stage)) for side in self.size)
        return min(self.window_size, *sides)


class SwinTransformerForImageClassification(PyramidClassifier):
    """A Swin Transformer with a classifier. It takes images of other sizes than its config's.

    Example:
        >>> sizes = {"image_size": 32, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
        >>> SwinTransformerForImageClassification(SwinTransformerConfig(**sizes)).num_features
        16
    """

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__(config)
        patch, widths, eps = config.patch_size, config.hidden_sizes, config.layer_norm_eps
        rows = [Conv(widths[0], patch, patch, norm="ln", eps=eps)]
        self.stem = ConvStem(config.num_channels, rows)
        self.stages = nn.ModuleList(_stage(config, s, row) for s, row in enumerate(config.rates))
        self.finish(make_norm("ln", widths[-1], eps, layout="map"), widths[-1], widths, patch)

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {"swin": _SWIN}

    @classmethod
    def state_dict_converters(cls, config: SwinTransformerConfig) -> dict[str, StateDictConverter]:
        return {
            "official": _by_microsoft(config, 1, "head"),  # a stage ends with its downsampling
            "timm": _by_microsoft(config, 0, "head.fc"),  # a stage begins with it, as here
            "transformers": _transformers(config, _IN_MEMORY),
            "transformers_files": _transformers(config, _IN_FILES),
        }


def _stage(config: SwinTransformerConfig, s: int, rates: list[float]) -> Stage:
    dim, eps, side = config.hidden_sizes[s], config.layer_norm_eps, config.window(s)
    blocks: list[nn.Module] = []
    for b, rate in enumerate(rates):
        attention = WindowAttention(
            dim, config.num_heads[s], (side, side), shift=b % 2 == 1, qkv_bias=config.qkv_bias
        )
        blocks.append(token_block(dim, attention, config.mlp_ratio, rate, eps=eps))
    merging = PatchMerging(config.hidden_sizes[s - 1], dim, eps) if s else None
    return Stage(BlockSequence(blocks), layout="tokens", downsample=merging)


def _blocks(config: SwinTransformerConfig) -> list[str]:
    return [f"{s}.blocks.{b}" for s, depth in enumerate(config.depths) for b in range(depth)]


def _by_microsoft(config: SwinTransformerConfig, lag: int, head: str) -> StateDictConverter:
    """Names of the authors' code; ``lag`` is how many stages later a downsampling stands here."""
    names = {"patch_embed.proj": "stem.conv0", "patch_embed.norm": "stem.norm0"}
    names |= {"norm": "norm", head: "head.fc"}
    for s in range(1, len(config.depths)):
        names[f"layers.{s - lag}.downsample"] = f"stages.{s}.downsample"
    ignored = []
    in_block = {**same("norm1", "norm2", "mlp"), "attn": "mixer", f"attn.{_TABLE}": _OURS}
    for block in _blocks(config):
        names |= under(f"layers.{block}", f"stages.{block}", in_block)
        ignored += [f"layers.{block}.attn.relative_position_index", f"layers.{block}.attn_mask"]
    return StateDictConverter(names, ignored=tuple(ignored))


_TABLE = "relative_position_bias_table"
_OURS = "mixer.bias.position_table"
_IN_MEMORY = {**IN_MEMORY, f"attention.relative_position_bias.{_TABLE}": _OURS}
_IN_FILES = {**in_files("attention.self"), f"attention.self.{_TABLE}": _OURS}


def _transformers(config: SwinTransformerConfig, in_block: Mapping[Any, str]) -> StateDictConverter:
    """transformers' Swin, whose live models and files have other names."""
    stem = {"patch_embeddings.projection": "conv0", "norm": "norm0"}
    names = {"swin.layernorm": "norm", "classifier": "head.fc"}
    names |= under("swin.embeddings", "stem", stem)
    for s in range(1, len(config.depths)):
        names[f"swin.encoder.layers.{s - 1}.downsample"] = f"stages.{s}.downsample"
    ignored = []
    for block in _blocks(config):
        layer = f"swin.encoder.layers.{block}"
        names |= under(layer, f"stages.{block}", in_block)
        ignored.append(f"{layer}.attention.self.relative_position_index")
    return StateDictConverter(names, ignored=tuple(ignored))


_SWIN = ConfigMap(
    "SwinForImageClassification",
    same=(
        *("image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads"),
        *("window_size", "mlp_ratio", "qkv_bias", "drop_path_rate"),
    ),
    # transformers gives this eps to some of the norms, the others have 1e-5.
    only={"hidden_act": "gelu", "use_absolute_embeddings": False, "layer_norm_eps": 1e-5},
    harmless=("hidden_size", "num_layers", "path_norm"),
)

_DEEP = {"depths": (2, 2, 18, 2)}
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"drop_path_rate": 0.2},
    "small": {**_DEEP, "drop_path_rate": 0.3},
    "base": {**_DEEP, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
    "large": {**_DEEP, "embed_dim": 192, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.2},
}
_FINE = {"window_size": 12, "image_size": 384}

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"swin_{size}_patch4_window7_224": fields for size, fields in _SIZES.items()},
    **{f"swin_{size}_patch4_window12_384": _SIZES[size] | _FINE for size in ("base", "large")},
}

register_architecture(SwinTransformerConfig, SwinTransformerForImageClassification, VARIANTS)
