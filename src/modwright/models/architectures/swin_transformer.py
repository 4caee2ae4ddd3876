"""Swin Transformer (arXiv 2103.14030): attention in windows that move from block to block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import Concat, Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.norms2d import make_norm
from modwright.nn.patch_merging import PatchMerging
from modwright.nn.residual import drop_path_rates
from modwright.nn.stage import Stage
from modwright.nn.stems.conv_stem import Conv, ConvStem
from modwright.nn.token_mixers.window_attention import WindowAttention

__all__ = ["VARIANTS", "SwinTransformerConfig", "SwinTransformerForImageClassification"]


@strict
class SwinTransformerConfig(ImageConfig):
    """Structure of a Swin Transformer.

    Attributes:
        patch_size: side of a patch in pixels; it divides the image's sides.
        embed_dim: channels of the first stage; each stage has twice as many as the one before. As
            in transformers, where ``hidden_size`` of a Swin is the width of its last stage.
        depths: blocks per stage; every second one moves its windows.
        num_heads: heads per stage.
        window_size: places along a side of a window; no more than the stage has at ``image_size``.
        mlp_ratio: neurons per channel.
        qkv_bias: biases of the maps to queries, keys and values.
        layer_norm_eps: of all norms.
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
        for heads, width in zip(self.num_heads, self.hidden_sizes):
            if width % heads:
                raise InvalidInputError(f"{heads} heads do not divide a width of {width}")
        if self.window_size < 1:
            raise InvalidInputError(f"window_size must be at least 1, not {self.window_size}")
        self.check_size(*self.size)

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that patches do not cut evenly."""
        self.check_multiples(self.patch_size, height, width)

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
        >>> import torch
        >>> config = SwinTransformerConfig(
        ...     image_size=32, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4,
        ...     num_labels=5)
        >>> model = SwinTransformerForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 48)).logits.shape
        torch.Size([1, 5])
    """

    config_class = SwinTransformerConfig

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__(config)
        patch, widths, eps = config.patch_size, config.hidden_sizes, config.layer_norm_eps
        rows = [Conv(widths[0], patch, patch, norm="ln", eps=eps)]
        self.stem = ConvStem(config.num_channels, rows)
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nn.ModuleList(_stage(config, s, rates[s]) for s in range(len(widths)))
        self.norm = make_norm("ln", widths[-1], eps, layout="map")
        self.head = self.make_head(widths[-1])
        self.describe_features(widths, patch)
        self.post_init()

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        self.config.check_size(*pixel_values.shape[2:])

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {"swin": _SWIN}

    @classmethod
    def state_dict_converters(cls, config: SwinTransformerConfig) -> dict[str, StateDictConverter]:
        return {
            "official": _official(config),
            "timm": _timm(config),
            "transformers": _transformers(config, _IN_MEMORY),
            "transformers_files": _transformers(config, _IN_FILES),
        }


def _stage(config: SwinTransformerConfig, s: int, rates: list[float]) -> Stage:
    dim, eps = config.hidden_sizes[s], config.layer_norm_eps
    side = config.window(s)
    blocks: list[nn.Module] = [
        Block(
            dim,
            WindowAttention(
                dim,
                config.num_heads[s],
                (side, side),
                shift=b % 2 == 1,
                qkv_bias=config.qkv_bias,
            ),
            Mlp(dim, int(dim * config.mlp_ratio)),
            lambda: nn.LayerNorm(dim, eps=eps),
            drop_path=rate,
        )
        for b, rate in enumerate(rates)
    ]
    return Stage(
        BlockSequence(blocks),
        layout="tokens",
        downsample=PatchMerging(config.hidden_sizes[s - 1], dim, eps) if s else None,
    )


# Names in other libraries


def _blocks(config: SwinTransformerConfig) -> list[str]:
    return [f"{s}.blocks.{b}" for s, depth in enumerate(config.depths) for b in range(depth)]


def _by_microsoft(config: SwinTransformerConfig, lag: int, head: str) -> StateDictConverter:
    """Names of the authors' code; ``lag`` is how many stages later a downsampling stands here."""
    rules = [
        Rename("patch_embed.proj", "stem.conv0"),
        Rename("patch_embed.norm", "stem.norm0"),
        Rename("norm", "norm"),
        Rename(head, "head.fc"),
    ]
    for s in range(1, len(config.depths)):
        rules.append(Rename(f"layers.{s - lag}.downsample", f"stages.{s}.downsample"))
    ignored = []
    for block in _blocks(config):
        theirs, ours = f"layers.{block}", f"stages.{block}"
        rules += [
            Rename(f"{theirs}.{part}", f"{ours}.{part}") for part in ("norm1", "norm2", "mlp")
        ]
        rules.append(Rename(f"{theirs}.attn", f"{ours}.mixer"))
        table = f"{theirs}.attn.relative_position_bias_table"
        rules.append(Rename(table, f"{ours}.mixer.bias.position_table"))
        ignored += [f"{theirs}.attn.relative_position_index", f"{theirs}.attn_mask"]
    return StateDictConverter(tuple(rules), ignored=tuple(ignored))


def _official(config: SwinTransformerConfig) -> StateDictConverter:
    """microsoft/Swin-Transformer: a stage ends with its downsampling."""
    return _by_microsoft(config, 1, "head")


def _timm(config: SwinTransformerConfig) -> StateDictConverter:
    """timm, where a stage begins with it, as here."""
    return _by_microsoft(config, 0, "head.fc")


@dataclass(frozen=True)
class _Names:
    """What transformers calls the parts of a block."""

    maps: tuple[str, ...]
    parts: dict[str, str]


_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_TABLE = "mixer.bias.position_table"
_IN_MEMORY = _Names(
    tuple(f"attention.{letter}_proj" for letter in "qkv"),
    {
        **_NORMS,
        "mlp": "mlp",
        "mixer.proj": "attention.o_proj",
        _TABLE: "attention.relative_position_bias.relative_position_bias_table",
    },
)
_IN_FILES = _Names(
    tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    {
        **_NORMS,
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "mixer.proj": "attention.output.dense",
        _TABLE: "attention.self.relative_position_bias_table",
    },
)


def _transformers(config: SwinTransformerConfig, names: _Names) -> StateDictConverter:
    """transformers' Swin, whose live models and files have other names."""
    rules = [
        Rename("swin.embeddings.patch_embeddings.projection", "stem.conv0"),
        Rename("swin.embeddings.norm", "stem.norm0"),
        Rename("swin.layernorm", "norm"),
        Rename("classifier", "head.fc"),
    ]
    for s in range(1, len(config.depths)):
        path = f"swin.encoder.layers.{s - 1}.downsample"
        rules.append(Rename(path, f"stages.{s}.downsample"))
    stacks, ignored = [], []
    for block in _blocks(config):
        layer, ours = f"swin.encoder.layers.{block}", f"stages.{block}"
        rules += [
            Rename(f"{layer}.{theirs}", f"{ours}.{here}") for here, theirs in names.parts.items()
        ]
        stacks.append(Concat(tuple(f"{layer}.{name}" for name in names.maps), f"{ours}.mixer.qkv"))
        ignored.append(f"{layer}.attention.self.relative_position_index")
    return StateDictConverter(tuple(rules), tuple(ignored), stacks=tuple(stacks))


_SAME = ("image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads")
_SWIN = ConfigMap(
    renamed={k: k for k in (*_SAME, "window_size", "mlp_ratio", "qkv_bias", "drop_path_rate")},
    # transformers gives this eps to some of the norms, the others have 1e-5.
    only={"hidden_act": "gelu", "use_absolute_embeddings": False, "layer_norm_eps": 1e-5},
    harmless=(
        *("hidden_size", "num_layers", "path_norm"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
    architectures=("SwinForImageClassification",),
)

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
_RATES = {"tiny": 0.2, "small": 0.3, "base": 0.5, "large": 0.2}
_FINE = {"window_size": 12, "image_size": 384}

VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"swin_{size}_patch4_window7_224": {**fields, "drop_path_rate": _RATES[size]}
        for size, fields in _SIZES.items()
    },
    **{
        f"swin_{size}_patch4_window12_384": {
            **_SIZES[size],
            **_FINE,
            "drop_path_rate": _RATES[size],
        }
        for size in ("base", "large")
    },
}

register_architecture(SwinTransformerConfig, SwinTransformerForImageClassification, VARIANTS)
