"""CRAFT (arXiv 2308.05022): small images to large ones, detail asking for its surroundings."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageToImage
from transformers.modeling_outputs import ImageSuperResolutionOutput

from modwright.core.errors import InvalidInputError
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import VisionConfig, VisionModel, token_block
from modwright.nn.block import BlockSequence
from modwright.nn.channel_mixers.mlp import GatedDepthwise
from modwright.nn.cross_refinement import (
    CrossRefinementBlock,
    HighFrequencyBlock,
    HybridFusion,
    ResidualGroup,
)
from modwright.nn.norms2d import make_norm
from modwright.nn.stems.conv_stem import Conv, ConvStem, PixelShuffleUp
from modwright.nn.token_mixers.cross_channel_attention import CrossChannelAttention
from modwright.nn.token_mixers.window_attention import RectangleWindowAttention

__all__ = ["VARIANTS", "CraftConfig", "CraftForImageSuperResolution"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the training images' red, green and blue


class CraftConfig(VisionConfig):
    """Structure of a CRAFT.

    Attributes:
        image_size: of training pieces before they are made larger; the model takes other sizes.
        upscale: 2, 3, 4 or 8 pixels for one along each side.
        depths: blocks per group.
        num_heads: heads per group, even numbers.
        window: (height, width) of lying windows; standing ones are its transpose.
        mlp_ratio: neurons per channel of the MLP behind window attention.
        ffn_expansion: neurons per channel of the gated MLP behind channel attention.
        img_range: what images are multiplied by on their way in.
        position_dim: width of the network of position biases. None is that of the published
            models: 1 at 48 channels, where it has no effect at all.
        mask_shift: positions that only wrapping brings into one window do not see each other.
    """

    model_type = "craft"
    attribute_map = {"dim": "hidden_size"}

    image_size: int | list[int] | tuple[int, ...] = 64
    upscale: int = 4
    hidden_size: int = 48
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_heads: list[int] | tuple[int, ...] = (6, 6, 6, 6)
    window: list[int] | tuple[int, ...] = (4, 16)
    mlp_ratio: float | int = 2.0
    ffn_expansion: float | int = 2.66
    img_range: float | int = 1.0
    position_dim: int | None = None
    mask_shift: bool = False

    size_hint = "; modwright.models.upscaling.upscale_image takes any size"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        width, sides, scale = self.hidden_size, list(self.window), self.upscale
        self.require(scale in (2, 3, 4, 8), f"upscale must be one of 2, 3, 4, 8, not {scale}")
        self.per_stage(len(self.depths), "num_heads")
        for heads in self.num_heads:
            told = f"two kinds of windows share the heads: {heads} is no even number"
            self.require(heads % 2 == 0, told)
        self.check_divides("num_heads", *[width] * len(self.depths))
        pair = len(sides) == 2 and min(sides) > 0
        self.require(pair, f"window is a height and a width, not {sides}")
        self.require(
            self.position_dim is not None or width >= 32,
            f"a width of {width} leaves no channel to the network of positions: take at least 32, "
            "or say position_dim",
        )

    @property
    def multiple(self) -> int:
        return math.lcm(*self.window)


class CraftForImageSuperResolution(VisionModel):
    """Features, groups of blocks that refine them, and one step to the large image.

    Example:
        >>> sizes = {"hidden_size": 32, "depths": [1], "num_heads": [4], "window": [2, 4]}
        >>> model = CraftForImageSuperResolution(CraftConfig(upscale=2, **sizes))
        >>> model(torch.zeros(1, 3, 8, 12)).reconstruction.shape
        torch.Size([1, 3, 16, 24])
    """

    def __init__(self, config: CraftConfig) -> None:
        super().__init__(config)
        dim = config.hidden_size
        self.stem = ConvStem(config.num_channels, [Conv(dim, 3, 1, 1)])
        self.groups = nn.ModuleList(
            ResidualGroup(dim, BlockSequence([_block(config, heads) for _ in range(depth)]))
            for depth, heads in zip(config.depths, config.num_heads)
        )
        self.norm = make_norm("ln", dim, layout="map")
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.up = PixelShuffleUp(dim, config.num_channels, config.upscale)
        self.post_init()

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        if not pixel_values.is_floating_point():
            raise InvalidInputError(
                f"pixels are numbers from 0 to 1, not {pixel_values.dtype}; "
                "upscale_image takes whole numbers from 0 to 255, too"
            )

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **ignored: Any,
    ) -> ImageSuperResolutionOutput:
        """The large image, and the mean absolute error where labels are given.

        Args:
            pixel_values: (B, C, H, W) from 0 to 1, H and W multiples of both sides of the window.
            labels: (B, C, scale H, scale W).
            output_hidden_states: gives the features before the first group and behind each, too.
        """
        self.check_pixels(pixel_values)
        channels, range_ = self.config.num_channels, self.config.img_range
        numbers = MEAN if channels == len(MEAN) else (0.0,) * channels
        mean = pixel_values.new_tensor(numbers).view(1, -1, 1, 1)
        shallow = self.stem((pixel_values - mean) * range_)
        features = [shallow]
        for group in self.groups:
            features.append(group(features[-1]))
        deep = self.conv(self.norm(features[-1])) + shallow
        large = self.up(deep) / range_ + mean
        return ImageSuperResolutionOutput(
            loss=None if labels is None else F.l1_loss(large, labels),
            reconstruction=large,
            hidden_states=tuple(features) if output_hidden_states else None,
        )

    @classmethod
    def state_dict_converters(cls, config: CraftConfig) -> dict[str, StateDictConverter]:
        return {"official": _official(config)}


def _block(config: CraftConfig, heads: int) -> nn.Module:
    dim = config.hidden_size
    attention = CrossChannelAttention(dim, heads)
    fusion = HybridFusion(dim, attention, GatedDepthwise(dim, int(dim * config.ffn_expansion)))
    low: list[nn.Module] = []
    for shift in (False, True):
        mixer = RectangleWindowAttention(
            dim,
            heads,
            (config.window[0], config.window[1]),
            shift=shift,
            mask_shift=config.mask_shift,
            position_dim=config.position_dim,
        )
        low.append(token_block(dim, mixer, config.mlp_ratio))
    return CrossRefinementBlock(BlockSequence(low), HighFrequencyBlock(dim), fusion)


# Names in the authors' files
_WINDOWS = {
    **same("norm1", "norm2", "mlp"),
    "qkv": "mixer.qkv",
    "proj": "mixer.proj",
    "get_v": "mixer.local",
}
_POSITIONS = {"pos_proj": "proj"} | {
    f"pos{s + 1}.{part}": f"steps.{s}.{part}" for s in range(3) for part in (0, 2)
}
_HIGH = {"conv": "conv", "fc": "fc", "last_fc": "proj"}
_FUSION = {
    "norm1.body": "norm1",
    "norm2.body": "norm2",
    "attn.temperature": "mixer.temperature",
    "attn.q": "mixer.q.0",
    "attn.q_dwconv": "mixer.q.1",
    "attn.kv": "mixer.kv.0",
    "attn.kv_dwconv": "mixer.kv.1",
    "attn.project_out": "mixer.proj",
    "ffn.project_in": "mlp.fc1",
    "ffn.dwconv": "mlp.conv",
    "ffn.project_out": "mlp.fc2",
}
# Numbers that follow from the sides of the windows.
_TABLES = ("relative_position_index_h", "relative_position_index_v", "biases_h", "biases_v")


def _official(config: CraftConfig) -> StateDictConverter:
    """AVC2-UESTC/CRAFT-SR: three lists per group, one for each kind of part."""
    names: dict[str, str] = {"conv_first": "stem.conv0", "norm.body": "norm"}
    names |= {"conv_after_body": "conv", "upsample.0": "up.conv"}
    for g, depth in enumerate(config.depths):
        names[f"layers.{g}.conv"] = f"groups.{g}.conv"
        for b in range(depth):
            parts = {**under(f"hfer_blocks.{b}", "high", _HIGH)}
            parts |= under(f"hf_blocks.{b}", "fusion", _FUSION)
            for j in (0, 1):
                block = f"srwa_blocks.{2 * b + j}"
                parts |= under(block, f"low.{j}", _WINDOWS)
                for half in (0, 1):
                    place = f"low.{j}.mixer.biases.{half}"
                    parts |= under(f"{block}.attns.{half}.pos", place, _POSITIONS)
            names |= under(f"layers.{g}.residual_group", f"groups.{g}.blocks.{b}", parts)
    return StateDictConverter(names, ignored=_TABLES)


VARIANTS: dict[str, dict[str, Any]] = {f"craft_x{n}": {"upscale": n} for n in (2, 3, 4)}

register_architecture(
    CraftConfig, CraftForImageSuperResolution, VARIANTS, auto=AutoModelForImageToImage
)
