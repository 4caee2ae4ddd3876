"""SReT (arXiv 2111.05297): blocks that run twice with the same weights, attention in slices."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, refusing
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.models.vision_model import token_block
from modwright.nn.block import Stage, drop_path_rates
from modwright.nn.grid_positions import LearnedGrid
from modwright.nn.layouts import SpatialShape
from modwright.nn.recursive import RecursiveStage, looping
from modwright.nn.stems.conv_stem import Conv, ConvStem, Downsample
from modwright.nn.token_mixers.sliced_attention import PERMUTATIONS, SlicedAttention

__all__ = ["PROJECTIONS", "VARIANTS", "SReTConfig", "SReTForImageClassification"]

EPS = 1e-6
STEM_STEPS = 3

# How many projection layers a stage has, for so many blocks and passes.
PROJECTIONS = {
    "per_pass": lambda blocks, passes: passes,
    "per_block": lambda blocks, passes: blocks,
    "none": lambda blocks, passes: 0,
}


class SReTConfig(ImageConfig):
    """Structure of an SReT.

    Attributes:
        head_dim: channels of a head, the same in all stages.
        depths: passes per stage.
        blocks: blocks with weights of their own per stage; each runs ``depths / blocks`` times.
        groups_first: slices of the tokens on the first pass of each block, per stage.
        groups_later: the same on all later passes, where tokens are shuffled.
        permutation: how they are shuffled in training: a name of :data:`PERMUTATIONS`.
        eval_permutation: the same in eval mode. The authors' code has "random" there, too, so its
            answers change from call to call.
        permutation_seed: of "fixed"; every block has an order of its own.
        projections: a name of :data:`PROJECTIONS`: layers behind each pass, or one per block that
            its passes share, or none. With the last two any number of loops can be run.
        projection_ratio: neurons per channel in them.
    """

    model_type = "sret"

    head_dim: int = 32
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8)
    depths: list[int] | tuple[int, ...] = (4, 10, 6)
    blocks: list[int] | tuple[int, ...] = (2, 5, 3)
    groups_first: list[int] | tuple[int, ...] = (8, 4, 1)
    groups_later: list[int] | tuple[int, ...] = (2, 1, 1)
    permutation: str = "random"
    eval_permutation: str = "fixed"
    permutation_seed: int = 0
    mlp_ratio: float | int = 3.6
    projections: str = "per_pass"
    projection_ratio: float | int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        staged = ("num_heads", "blocks", "groups_first", "groups_later")
        self.per_stage(len(self.depths), *staged)
        self.check_names(
            permutation=PERMUTATIONS, eval_permutation=PERMUTATIONS, projections=PROJECTIONS
        )
        for s, (depth, blocks) in enumerate(zip(self.depths, self.blocks)):
            told = f"{depth} passes of stage {s} cannot be shared out evenly to {blocks} blocks"
            self.require(blocks > 0 and depth > 0 and depth % blocks == 0, told)
        for s, (before, width) in enumerate(pairwise(self.hidden_sizes), 1):
            told = f"the width {width} of stage {s} is no multiple of the {before} before it"
            self.require(width % before == 0, told)
        self.check_size(*self.size)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels per stage."""
        return [self.head_dim * heads for heads in self.num_heads]

    @property
    def loops(self) -> list[int]:
        """Passes of each block, per stage."""
        return [depth // blocks for depth, blocks in zip(self.depths, self.blocks)]

    def grids(self, size: SpatialShape) -> list[SpatialShape]:
        """Positions of each stage for images of a size."""
        halved = [size]
        for _ in range(STEM_STEPS + len(self.depths) - 1):
            height, width = halved[-1]
            halved.append(((height + 1) // 2, (width + 1) // 2))
        return halved[STEM_STEPS:]

    def check_size(self, height: int, width: int) -> None:
        """Refuses images whose tokens cannot be sliced evenly."""
        for s, (rows, columns) in enumerate(self.grids((height, width))):
            passes = (self.groups_first[s], self.groups_later[s])
            for groups in passes[: self.loops[s]]:
                if groups < 1 or rows * columns % groups:
                    raise InvalidInputError(
                        f"{groups} groups do not divide the {rows * columns} tokens of stage {s} "
                        f"({rows} x {columns}) of images of {height} x {width}"
                    )


class SReTForImageClassification(PyramidClassifier):
    """The SReT pyramid with a classifier.

    Positions are resized to images of another size than the config's.

    Example:
        >>> sizes = {"head_dim": 4, "num_heads": [2, 4], "depths": [2, 2], "blocks": [1, 1]}
        >>> sizes |= {"groups_first": [4, 1], "groups_later": [2, 1], "image_size": 32}
        >>> SReTForImageClassification(SReTConfig(**sizes)).num_features
        16
    """

    def __init__(self, config: SReTConfig) -> None:
        super().__init__(config)
        widths = config.hidden_sizes
        first = widths[0]
        rows = [Conv(out, 3, 2, 1, norm="bn2d", act="relu") for out in (first // 2, first, first)]
        self.stem = nn.Sequential(
            OrderedDict(
                convs=ConvStem(config.num_channels, rows),
                positions=LearnedGrid(first, config.grids(config.size)[0]),
                drop=nn.Dropout(config.drop_rate),
            )
        )
        rates = drop_path_rates(config.drop_path_rate, config.depths, endpoint=False)
        self.stages = nn.ModuleList(_stage(config, s, row) for s, row in enumerate(rates))
        norm = nn.LayerNorm(widths[-1], eps=EPS)
        self.finish(None, widths[-1], widths, 2**STEM_STEPS, head_norm=norm)

    def forward(
        self, pixel_values: Tensor, *args: Any, num_loops: int | None = None, **more: Any
    ) -> Any:
        """As of every classifier, with ``num_loops`` passes of each block in this call.

        Projections of passes that are left out are left out, too.
        """
        with ExitStack() as stack:
            with refusing():
                stack.enter_context(looping(self, num_loops))
            return super().forward(pixel_values, *args, **more)

    def initialize_linear(self, linear: nn.Linear) -> None:
        linear.reset_parameters()

    @classmethod
    def state_dict_converters(cls, config: SReTConfig) -> dict[str, StateDictConverter]:
        return {"official": _official(config)} if config.projections == "per_pass" else {}


def _stage(config: SReTConfig, s: int, rates: list[float]) -> Stage:
    dim, count, loops = config.hidden_sizes[s], config.blocks[s], config.loops[s]
    groups = (config.groups_first[s], config.groups_later[s])

    layer = partial(token_block, dim, eps=EPS, scaled=True)
    blocks = []
    for index in range(count):
        attention = SlicedAttention(
            dim,
            config.num_heads[s],
            groups,
            permutation=config.permutation,
            eval_permutation=config.eval_permutation,
            seed=config.permutation_seed + sum(config.blocks[:s]) + index,
        )
        # a block has the rate of its own place in the stage, not one for each of its passes
        blocks.append(layer(attention, config.mlp_ratio, rates[index]))
    behind = PROJECTIONS[config.projections](count, config.depths[s])
    projections = [layer(None, config.projection_ratio) for _ in range(behind)]
    before = config.hidden_sizes[s - 1] if s else 0
    return Stage(
        RecursiveStage(blocks, projections, loops),
        layout="tokens",
        downsample=Downsample(before, dim, groups=before) if s else None,
    )


# Names in the authors' repository, szq0214/SReT
_PROJECTION = {
    "norm1": "norm2",
    **same("mlp.fc1", "mlp.fc2"),
    "coefficient1.bias": "res2.alpha",
    "coefficient2.bias": "res2.beta",
}
_BLOCK = {
    **same("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
    "attn.qkv": "mixer.qkv",
    "attn.proj": "mixer.proj",
    "coefficient1.bias": "res1.alpha",
    "coefficient2.bias": "res1.beta",
    "coefficient3.bias": "res2.alpha",
    "coefficient4.bias": "res2.beta",
}


def _official(config: SReTConfig) -> StateDictConverter:
    """Passes and projections take turns in one list; a shared block has a name for each pass."""
    names: dict[str, str] = {"pos_embed": "stem.positions.table"}
    names |= {"norm": "head.norm", "head": "head.fc"}
    aliases: dict[str, str] = {}
    for n in range(STEM_STEPS):
        stem = {f"conv{n + 1}": f"conv{n}", f"bn{n + 1}": f"norm{n}"}
        names |= under("patch_embed", "stem.convs", stem)
    for s, loops in enumerate(config.loops):
        theirs, ours = f"transformers.{s}.blocks", f"stages.{s}.blocks"
        if s:
            names[f"pools.{s - 1}.conv"] = f"stages.{s}.downsample.conv"
        for p in range(config.depths[s]):
            first = f"{theirs}.{2 * (p - p % loops)}"
            if p % loops:
                aliases[f"{theirs}.{2 * p}"] = first
            else:
                names |= under(first, f"{ours}.shared.{p // loops}", _BLOCK)
            names |= under(f"{theirs}.{2 * p + 1}", f"{ours}.projections.{p}", _PROJECTION)
    return StateDictConverter(names, aliases=aliases)


_WHOLE = {"groups_first": (1, 1, 1), "groups_later": (1, 1, 1), "drop_path_rate": 0.0}
_SLICED = {"drop_path_rate": 0.1}
_FINE = {"groups_first": (16, 14, 1), "groups_later": (1, 1, 1)}
_LT = {"mlp_ratio": 4.0}
_S = {"head_dim": 42, "num_heads": (3, 6, 12), "mlp_ratio": 3.0, "projection_ratio": 2}

VARIANTS: dict[str, dict[str, Any]] = {
    "sret_t": _SLICED,
    "sret_t_wo_slice": _WHOLE,
    "sret_t_wo_slice_384": {**_WHOLE, "image_size": 384},
    "sret_lt": {**_LT, **_SLICED},
    "sret_lt_wo_slice": {**_LT, **_WHOLE},
    "sret_lt_fine_slice": {**_LT, **_SLICED, **_FINE},
    "sret_s": {**_S, **_SLICED},
    "sret_s_wo_slice": {**_S, **_WHOLE},
    "sret_s_wo_slice_384": {**_S, **_WHOLE, "image_size": 384},
    "sret_s_wo_slice_512": {**_S, **_WHOLE, "image_size": 512},
}

register_architecture(SReTConfig, SReTForImageClassification, VARIANTS)
