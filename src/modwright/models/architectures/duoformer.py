"""DuoFormer (arXiv 2506.12982): attention inside each cell over scales, then over the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, refusing
from modwright.core.modes import set_eval
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import start_normal, token_block
from modwright.nn.block import BlockSequence, drop_path_rates
from modwright.nn.conv_backbone import ConvBackbone, ResNetStages
from modwright.nn.grid_positions import LearnedTable, PrefixTokens
from modwright.nn.layouts import SpatialShape
from modwright.nn.stems.backbone_tokens import ChannelToken, MultiScalePatchTokens
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = [
    "ATTENTION_SCALES",
    "BACKBONES",
    "SCALE_TOKENS",
    "VARIANTS",
    "DuoFormerConfig",
    "DuoFormerForImageClassification",
]

STAGES = 4
STD = 0.036  # of tokens and positions at the start
EPS = 1e-6

SCALE_TOKENS = ("learned", "channel", "none")
ATTENTION_SCALES: dict[str, Callable[[int, int], float]] = {
    "1/sqrt(head_dim)": lambda dim, heads: (dim // heads) ** -0.5,
    "2/sqrt(dim)": lambda dim, heads: 2 * dim**-0.5,
}


def _resnet(branch: str, *depths: int) -> tuple[type[nn.Module], dict[str, Any]]:
    first = 64 if branch == "basic" else 256
    widths = [first * 2**s for s in range(STAGES)]
    return ResNetStages, {"branch": branch, "depths": list(depths), "widths": widths}


# The class of a backbone, which gives its maps of a batch of images, the finest first; and what it
# is built from, besides the image's channels, unless the config says otherwise.
BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "resnet18": _resnet("basic", 2, 2, 2, 2),
    "resnet34": _resnet("basic", 3, 4, 6, 3),
    "resnet50": _resnet("bottleneck", 3, 4, 6, 3),
    "resnet101": _resnet("bottleneck", 3, 4, 23, 3),
    "resnet152": _resnet("bottleneck", 3, 8, 36, 3),
    "pyramid": (ConvBackbone, {"widths": [16, 32, 64, 128], "first_stride": 1}),
}


class DuoFormerConfig(ImageConfig):
    """Structure of a DuoFormer.

    Attributes:
        backbone: a name of :data:`BACKBONES`.
        backbone_fields: what differs from the named backbone: arguments of its class in ``nn``.
        scales: how many of the backbone's four maps are used, the coarsest first: 2, 3 or 4.
        depths: blocks over the scales of a cell.
        patch_depth: blocks over the cells; as many unless it is said.
        layer_scale: start of a factor per channel on the branches of the blocks over scales.
        scale_token: what stands first in every cell and is read at the end: "learned", one for
            all cells; "channel", one computed from all four maps; "none": the coarsest map's own.
        attention_scale: of the scores: a name of :data:`ATTENTION_SCALES`.
        patch_residual: blocks over cells are whole blocks with norms, residuals and an MLP. The
            released ones are attention alone, one behind the other.
        head_norm: the last norm is used. The released code computes it and drops the result.
        freeze_backbone: it is not trained, and its batch norms keep their statistics.
        interpolate_positions: images of other sizes get the cells' positions resized.
        cells_at_once: cells that attend over scales at one time, to save memory; None is all.
        init_std: of the linear layers' weights at the start. The released 0.02 is for 768 channels;
            a model of 48 learns much faster from 0.08, which lets as much through.
    """

    model_type = "duoformer"
    attribute_map = {"dim": "hidden_size", "depth": "depths", "heads": "num_heads"}

    backbone: str = "resnet50"
    backbone_fields: dict[str, Any] | None = None
    scales: int = 2
    hidden_size: int = 768
    depths: int = 12
    patch_depth: int | None = None
    num_heads: int = 12
    mlp_ratio: float | int = 4
    layer_scale: float | None = None
    scale_token: str = "learned"
    attention_scale: str = "1/sqrt(head_dim)"
    patch_residual: bool = False
    head_norm: bool = False
    freeze_backbone: bool = False
    interpolate_positions: bool = False
    cells_at_once: int | None = None
    init_std: float | int = 0.02
    global_pool: str = "token"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_names(
            backbone=BACKBONES, scale_token=SCALE_TOKENS, attention_scale=ATTENTION_SCALES
        )
        scales, cells, maps = self.scales, self.cells_at_once, len(self.backbone_widths)
        self.require(2 <= scales <= STAGES, f"scales lie between 2 and {STAGES}, not {scales}")
        self.check_divides("num_heads", self.hidden_size)
        some = cells is None or cells > 0
        self.require(some, f"cells_at_once must be at least 1, not {cells}")
        self.require(maps == STAGES, f"a backbone must give {STAGES} maps, not {maps}")
        self.check_size(*self.size)

    @property
    def backbone_structure(self) -> dict[str, Any]:
        """All fields that the backbone is built from."""
        return {**BACKBONES[self.backbone][1], **(self.backbone_fields or {})}

    @property
    def backbone_widths(self) -> list[int]:
        """Channels of the backbone's maps, the finest first."""
        return list(self.backbone_structure["widths"])

    @property
    def multiple(self) -> int:
        """Pixels per cell along one side."""
        return 2 ** (STAGES - 1) * int(self.backbone_structure.get("first_stride", 4))


class DuoFormerForImageClassification(TokenClassifier):
    """A DuoFormer with a classifier on its class token.

    Example:
        >>> sizes = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> sizes |= {"backbone": "pyramid", "backbone_fields": {"widths": [4, 4, 8, 8]}}
        >>> DuoFormerForImageClassification(DuoFormerConfig(**sizes)).num_features
        16
    """

    image_free = ("scale_positions",)

    def __init__(self, config: DuoFormerConfig) -> None:
        super().__init__(config)
        dim = config.hidden_size
        build: Any = BACKBONES[config.backbone][0]
        self.backbone = build(config.num_channels, **config.backbone_structure)
        self.tokenise = MultiScalePatchTokens(config.backbone_widths[-config.scales :], dim)
        self.scale_prefix = self.channel_token = None
        if config.scale_token == "learned":
            self.scale_prefix = PrefixTokens(dim, ["scale_token"], STD)
        elif config.scale_token == "channel":
            self.channel_token = ChannelToken(config.backbone_widths, dim)
        first = int(config.scale_token != "none")
        self.scale_positions = LearnedTable(dim, (1, self.tokenise.tokens), prefix=first, std=STD)
        count = config.depths if config.patch_depth is None else config.patch_depth
        rates = drop_path_rates(
            config.drop_path_rate, [config.depths, count if config.patch_residual else 0]
        )
        self.scale_blocks = BlockSequence([_block(config, rate) for rate in rates[0]])
        self.begin_stream(dim, std=STD)
        self.blocks = BlockSequence(
            [_block(config, rate) for rate in rates[1]]
            if config.patch_residual
            else [_attention(config) for _ in range(count)]
        )
        self.norm = nn.LayerNorm(dim, eps=EPS) if config.head_norm else nn.Identity()
        if not config.head_norm:  # stands in released files, and nothing reads it
            self.unused_norm = nn.LayerNorm(dim, eps=EPS).requires_grad_(False)
        if config.freeze_backbone:
            self.backbone.requires_grad_(False)
        self.finish(self.norm, dim, [dim] * count, config.multiple)

    def train(self, mode: bool = True) -> DuoFormerForImageClassification:
        """Training mode; a frozen backbone stays as it is in use."""
        super().train(mode)
        if self.config.freeze_backbone:
            set_eval(self.backbone)
        return self

    def initialize_linear(self, linear: nn.Linear) -> None:
        if any(linear is classifier for classifier in self.head.classifiers()):
            linear.reset_parameters()
        else:
            start_normal(linear, self.config.init_std)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, SpatialShape]:
        return self.embed_features(self.backbone(pixel_values))

    def embed_features(self, features: Sequence[Tensor]) -> tuple[Tensor, SpatialShape]:
        """The stream before the first block over cells, from maps, the finest first.

        The maps are all four; where no "channel" token is made, those that are used are enough.
        """
        with refusing():
            tokens = self.tokenise(features[-self.config.scales :])
            if self.channel_token is not None:
                tokens = torch.cat((self.channel_token(features), tokens), dim=2)
        if self.scale_prefix is not None:
            tokens = self.scale_prefix(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        spatial_shape, own = (features[-1].shape[2], features[-1].shape[3]), self.config.grid
        if spatial_shape != own and not self.config.interpolate_positions:
            raise InvalidInputError(
                f"{spatial_shape[0]} x {spatial_shape[1]} regions where the config has "
                f"{own[0]} x {own[1]}; interpolate_positions=True would resize the positions"
            )
        return self.join_regions(self.mix_scales(tokens), spatial_shape), spatial_shape

    def mix_scales(self, tokens: Tensor) -> Tensor:
        """Attention inside each cell: (B, P, T, D) -> the first token of each (B, P, D)."""
        row = (1, self.tokenise.tokens)
        regions = self.scale_positions(tokens.flatten(0, 1), row)
        at_once = self.config.cells_at_once
        parts = (regions,) if at_once is None else regions.split(at_once)
        mixed = [self.scale_blocks(part, row)[:, 0] for part in parts]
        return torch.cat(mixed).unflatten(0, tokens.shape[:2])

    def join_regions(self, regions: Tensor, spatial_shape: SpatialShape) -> Tensor:
        """Class token and positions: (B, P, D) -> (B, 1 + P, D)."""
        return self.drop(self.positions(self.prefix(regions), spatial_shape))

    def forward_tokens(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, 1 + P, D) for ``forward_head``, from the maps of any backbone."""
        stream, spatial_shape = self.embed_features(features)
        return self.norm(self.blocks(stream, spatial_shape))

    @classmethod
    def state_dict_converters(cls, config: DuoFormerConfig) -> dict[str, StateDictConverter]:
        return {"official": _official(config)}


def _attention(config: DuoFormerConfig) -> SelfAttention:
    scale = ATTENTION_SCALES[config.attention_scale](config.hidden_size, config.num_heads)
    return SelfAttention(config.hidden_size, config.num_heads, scale=scale)


def _block(config: DuoFormerConfig, rate: float) -> nn.Module:
    dim, ratio, scale = config.hidden_size, config.mlp_ratio, config.layer_scale
    return token_block(dim, _attention(config), ratio, rate, eps=EPS, layer_scale=scale)


# Names in the authors' repository, xiaoyatang/duoformer_TCGA. Those of backbones and of what makes
# a "channel" token are not documented: they stay as they are here.
_BLOCK = {**same("norm1", "ls1", "norm2", "mlp", "ls2"), "attn": "mixer"}


def _official(config: DuoFormerConfig) -> StateDictConverter:
    names: dict[str, str] = {
        "backbone": "backbone",
        "channel_token_maps": "channel_token",
        "cls_token": "prefix.cls_token",
        "pos_embed": "positions.table",
        "pos_embed_for_scale": "scale_positions.table",
        "channel_token": "scale_prefix.scale_token",
        "fc_norm": "norm" if config.head_norm else "unused_norm",
        "head": "head.fc",
    }
    for index, stage in enumerate(range(STAGES - config.scales, STAGES)):
        names[f"projection.proj_heads{stage}"] = f"tokenise.projections.{index}"
    for b in range(config.depths):
        names |= under(f"scaleBlocks.{b}", f"scale_blocks.{b}", _BLOCK)
    for b in range(config.depths if config.patch_depth is None else config.patch_depth):
        alone = {"attn.qkv": "qkv", "attn.proj": "proj"}
        block = f"blocks.{b}"
        names |= under(block, block, _BLOCK if config.patch_residual else alone)
    rows = (lambda x: x.squeeze(0), lambda x: x.unsqueeze(0))
    changes = dict.fromkeys(("scale_positions.table", "scale_prefix.scale_token"), rows)
    return StateDictConverter(names, changes)


VARIANTS: dict[str, dict[str, Any]] = {
    f"duoformer_{backbone}_scales{scales}_224": {"backbone": backbone, "scales": scales}
    for backbone in ("resnet18", "resnet50")
    for scales in range(2, STAGES + 1)
}

register_architecture(DuoFormerConfig, DuoFormerForImageClassification, VARIANTS)
