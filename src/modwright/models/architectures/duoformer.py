"""DuoFormer (arXiv 2506.12982): attention inside each cell over scales, then over the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.modes import set_eval
from modwright.models.classifier import ImageConfig, TokenClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.conv_backbone import ConvBackbone
from modwright.nn.grid_positions import LearnedTable
from modwright.nn.layouts import SpatialShape
from modwright.nn.prefix_tokens import PrefixTokens
from modwright.nn.residual import drop_path_rates
from modwright.nn.resnet_stages import ResNetStages
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


# Backbones


@dataclass(frozen=True)
class Backbone:
    """A kind of backbone.

    Attributes:
        fields: what is built unless the config says otherwise; ``widths`` are the channels of its
            maps.
        build: makes it from the image's channels and the fields. It gives its maps of a batch of
            images, the finest first.
        stride: pixels per cell of the coarsest map, from the fields.
    """

    fields: dict[str, Any]
    build: Callable[[int, dict[str, Any]], nn.Module]
    stride: Callable[[dict[str, Any]], int]


def _resnet(branch: str, depths: list[int]) -> Backbone:
    first = 64 if branch == "basic" else 256
    return Backbone(
        {"branch": branch, "depths": depths, "widths": [first * 2**s for s in range(STAGES)]},
        lambda channels, fields: ResNetStages(channels, **fields),
        lambda fields: 2 ** (STAGES + 1),
    )


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet("basic", [2, 2, 2, 2]),
    "resnet34": _resnet("basic", [3, 4, 6, 3]),
    "resnet50": _resnet("bottleneck", [3, 4, 6, 3]),
    "resnet101": _resnet("bottleneck", [3, 4, 23, 3]),
    "resnet152": _resnet("bottleneck", [3, 8, 36, 3]),
    "pyramid": Backbone(
        {"widths": [16, 32, 64, 128], "first_stride": 1},
        lambda channels, fields: ConvBackbone(channels, **fields),
        lambda fields: 2 ** (STAGES - 1) * int(fields["first_stride"]),
    ),
}


@strict
class DuoFormerConfig(ImageConfig):
    """Structure of a DuoFormer.

    Attributes:
        backbone: a name of :data:`BACKBONES`.
        backbone_fields: what differs from the named backbone: arguments of
            :class:`modwright.nn.resnet_stages.ResNetStages`, or those of
            :class:`modwright.nn.conv_backbone.ConvBackbone`.
        scales: how many of the backbone's four maps are used, the coarsest first: 2, 3 or 4.
        hidden_size: channels.
        depths: blocks over the scales of a cell.
        patch_depth: blocks over the cells; as many unless it is said.
        num_heads: of both.
        mlp_ratio: neurons per channel.
        layer_scale: start of a factor per channel on the branches of the blocks over scales.
        scale_token: what stands first in every cell and is read at the end: "learned", one for
            all cells; "channel", one computed from all four maps; "none": the coarsest map's own.
        attention_scale: of the scores: a name of :data:`ATTENTION_SCALES`. The second is that of
            another model that the authors released.
        patch_residual: blocks over cells are whole blocks with norms, residuals and an MLP. The
            released ones are attention alone, one behind the other.
        head_norm: the last norm is used. The released code computes it and drops the result.
        freeze_backbone: it is not trained, and its batch norms keep their statistics.
        interpolate_positions: images of other sizes get the cells' positions resized.
        cells_at_once: cells that attend over scales at one time, to save memory; all unless it
            is said.
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
        for what, name, known in (
            ("backbone", self.backbone, BACKBONES),
            ("scale_token", self.scale_token, SCALE_TOKENS),
            ("attention_scale", self.attention_scale, ATTENTION_SCALES),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        if not 2 <= self.scales <= STAGES:
            raise InvalidInputError(f"scales lie between 2 and {STAGES}, not {self.scales}")
        if self.hidden_size % self.num_heads:
            raise InvalidInputError(
                f"num_heads {self.num_heads} does not divide a hidden_size of {self.hidden_size}"
            )
        if self.cells_at_once is not None and self.cells_at_once < 1:
            raise InvalidInputError(f"cells_at_once must be at least 1, not {self.cells_at_once}")
        if len(self.backbone_widths) != STAGES:
            raise InvalidInputError(
                f"a backbone must give {STAGES} maps, not {len(self.backbone_widths)}"
            )
        self.spatial_shape_of(*self.size)

    @property
    def backbone_structure(self) -> dict[str, Any]:
        """All fields that the backbone is built from."""
        return {**BACKBONES[self.backbone].fields, **(self.backbone_fields or {})}

    @property
    def backbone_widths(self) -> list[int]:
        """Channels of the backbone's maps, the finest first."""
        return list(self.backbone_structure["widths"])

    @property
    def stride(self) -> int:
        """Pixels per cell along one side."""
        return BACKBONES[self.backbone].stride(self.backbone_structure)

    def spatial_shape_of(self, height: int, width: int) -> SpatialShape:
        """The cells of an image; refuses one that they do not fill."""
        self.check_multiples(self.stride, height, width)
        return height // self.stride, width // self.stride


class DuoFormerForImageClassification(TokenClassifier):
    """A DuoFormer with a classifier on its class token.

    Example:
        >>> fields = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
        >>> small = {"widths": [4, 4, 8, 8], "first_stride": 1}
        >>> fields |= {"backbone": "pyramid", "backbone_fields": small, "num_labels": 5}
        >>> config = DuoFormerConfig(**fields)
        >>> model = DuoFormerForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 5])
    """

    config_class = DuoFormerConfig
    num_prefix_tokens = 1

    def __init__(self, config: DuoFormerConfig) -> None:
        super().__init__(config)
        dim, spatial_shape = config.hidden_size, config.spatial_shape_of(*config.size)
        build = BACKBONES[config.backbone].build
        self.backbone = build(config.num_channels, config.backbone_structure)
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
        self.prefix = PrefixTokens(dim, std=STD)
        self.positions = LearnedTable(dim, spatial_shape, prefix=1, std=STD)
        self.drop = nn.Dropout(config.drop_rate)
        self.blocks = BlockSequence(
            [_block(config, rate) for rate in rates[1]]
            if config.patch_residual
            else [_attention(config) for _ in range(count)]
        )
        self.norm = nn.LayerNorm(dim, eps=EPS) if config.head_norm else nn.Identity()
        if not config.head_norm:  # stands in released files, and nothing reads it
            self.unused_norm = nn.LayerNorm(dim, eps=EPS).requires_grad_(False)
        self.head = self.make_head(dim, prefix=1)
        self.describe_features(dim, config.stride, count)
        if config.freeze_backbone:
            self.backbone.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> DuoFormerForImageClassification:
        """Training mode; a frozen backbone stays as it is in use."""
        super().train(mode)
        if self.config.freeze_backbone:
            set_eval(self.backbone)
        return self

    def initialize_linear(self, linear: nn.Linear) -> None:
        if any(linear is classifier for classifier in self.head.classifiers()):
            linear.reset_parameters()
            return
        nn.init.trunc_normal_(linear.weight, std=self.config.init_std)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def check_pixels(self, pixel_values: Tensor) -> None:
        super().check_pixels(pixel_values)
        height, width = pixel_values.shape[2:]
        self._check_spatial_shape(self.config.spatial_shape_of(height, width))

    def _check_spatial_shape(self, spatial_shape: SpatialShape) -> None:
        own = self.positions.spatial_shape
        if spatial_shape != own and not self.config.interpolate_positions:
            raise InvalidInputError(
                f"{spatial_shape[0]} x {spatial_shape[1]} regions where the config has "
                f"{own[0]} x {own[1]}; "
                "interpolate_positions=True would resize the positions"
            )

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, SpatialShape]:
        return self.embed_features(self.backbone(pixel_values))

    def embed_features(self, features: Sequence[Tensor]) -> tuple[Tensor, SpatialShape]:
        """The stream before the first block over cells, from maps, the finest first.

        The maps are all four; where no "channel" token is made, those that are used are enough.

        Raises:
            InvalidInputError: maps that are too few or do not fit each other, or another grid.
        """
        with refusing():
            tokens = self.tokenise(features[-self.config.scales :])
            if self.channel_token is not None:
                tokens = torch.cat((self.channel_token(features), tokens), dim=2)
        if self.scale_prefix is not None:
            tokens = self.scale_prefix(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        spatial_shape = (features[-1].shape[2], features[-1].shape[3])
        self._check_spatial_shape(spatial_shape)
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
        joined: Tensor = self.drop(self.positions(self.prefix(regions), spatial_shape))
        return joined

    def forward_tokens(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, 1 + P, D) for ``forward_head``, from the maps of any backbone."""
        stream, spatial_shape = self.embed_features(features)
        found: Tensor = self.norm(self.blocks(stream, spatial_shape))
        return found

    def interpolate_pos_embed(
        self, name: str, table: Tensor, old: SpatialShape | None = None
    ) -> Tensor:
        """Those of cells; those inside a cell do not depend on the image."""
        fixed = name.startswith("scale_positions.")
        return table if fixed else super().interpolate_pos_embed(name, table, old)

    @classmethod
    def state_dict_converters(cls, config: DuoFormerConfig) -> dict[str, StateDictConverter]:
        return {"official": _official(config)}


def _attention(config: DuoFormerConfig) -> SelfAttention:
    scale = ATTENTION_SCALES[config.attention_scale](config.hidden_size, config.num_heads)
    return SelfAttention(config.hidden_size, config.num_heads, scale=scale)


def _block(config: DuoFormerConfig, rate: float) -> Block:
    dim = config.hidden_size
    return Block(
        dim,
        _attention(config),
        Mlp(dim, int(dim * config.mlp_ratio)),
        lambda: nn.LayerNorm(dim, eps=EPS),
        drop_path=rate,
        layer_scale=config.layer_scale,
    )


# Names in the authors' repository, xiaoyatang/duoformer_TCGA. Those of backbones and of what makes
# a "channel" token are not documented: they stay as they are here.

_BLOCK = {
    "norm1": "norm1",
    "mixer": "attn",
    "ls1": "ls1",
    "norm2": "norm2",
    "mlp": "mlp",
    "ls2": "ls2",
}


def _official(config: DuoFormerConfig) -> StateDictConverter:
    rules = [
        Rename("backbone", "backbone"),
        Rename("channel_token_maps", "channel_token"),
        Rename("cls_token", "prefix.cls_token"),
        Rename("pos_embed", "positions.table"),
        Rename("fc_norm", "norm" if config.head_norm else "unused_norm"),
        Rename("head", "head.fc"),
    ]
    for theirs, ours in (
        ("pos_embed_for_scale", "scale_positions.table"),
        ("channel_token", "scale_prefix.scale_token"),
    ):
        rules.append(Rename(theirs, ours, lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)))
    for index in range(config.scales):
        stage = STAGES - config.scales + index
        rules.append(Rename(f"projection.proj_heads{stage}", f"tokenise.projections.{index}"))
    for b in range(config.depths):
        rules += [
            Rename(f"scaleBlocks.{b}.{there}", f"scale_blocks.{b}.{here}")
            for here, there in _BLOCK.items()
        ]
    for b in range(config.depths if config.patch_depth is None else config.patch_depth):
        names = _BLOCK if config.patch_residual else {"qkv": "attn.qkv", "proj": "attn.proj"}
        rules += [
            Rename(f"blocks.{b}.{there}", f"blocks.{b}.{here}") for here, there in names.items()
        ]
    return StateDictConverter(tuple(rules))


VARIANTS: dict[str, dict[str, Any]] = {
    f"duoformer_{backbone}_scales{scales}_224": {"backbone": backbone, "scales": scales}
    for backbone in ("resnet18", "resnet50")
    for scales in range(2, STAGES + 1)
}

register_architecture(DuoFormerConfig, DuoFormerForImageClassification, VARIANTS)
