"""SMT (arXiv 2307.08579): modulation by convolutions in early stages, attention in late ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import StateDictConverter, same, under
from modwright.nn.block import Block, BlockSequence, Stage
from modwright.nn.channel_mixers.mlp import Mlp, ResidualDepthwiseConv
from modwright.nn.stems.conv_stem import Conv, ConvStem, Downsample
from modwright.nn.token_mixers.scale_aware_modulation import ScaleAwareModulation
from modwright.nn.token_mixers.self_attention import AttentionWithLocalConv

__all__ = ["MIXERS", "VARIANTS", "SMTConfig", "SMTForImageClassification"]

# The released models have another eps in the norms behind stem and downsampling than elsewhere.
EPS, EMBED_EPS = 1e-6, 1e-5
# A mixer, and the field that has its heads.
_HEADS = {"modulation": "modulation_heads", "attention": "num_heads"}


class SMTConfig(ImageConfig):
    """Structure of an SMT.

    Attributes:
        token_mixers: per stage a name of :data:`MIXERS`, or one for each of its blocks. Unless it
            is said, the last stage has attention, the one before it takes turns, modulation first,
            and all others have modulation.
        modulation_heads: kernel sizes of modulation, per stage. Where a stage has no such mixer its
            number is not looked at, and so it is with ``num_heads``.
        mlp_ratios: neurons per channel, per stage.
        modulation_ratio: channels inside the aggregation of scales, per channel.
        stem_kernel: side of the first kernel, odd.
    """

    model_type = "smt"
    attribute_map = {"widths": "hidden_sizes", "attention_heads": "num_heads"}

    depths: list[int] | tuple[int, ...] = (2, 2, 8, 1)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    token_mixers: str | list[Any] | tuple[Any, ...] | None = None
    modulation_heads: list[int] | tuple[int, ...] | int = 4
    num_heads: list[int] | tuple[int, ...] | int = (2, 4, 8, 16)
    mlp_ratios: Any = (4, 4, 4, 2)
    modulation_ratio: int = 2
    stem_kernel: int = 3
    qkv_bias: bool = True
    layer_scale_init: float | None = None
    fused: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.token_mixers is None:
            found: list[Any] = ["modulation"] * (len(self.depths) - 1)
            if found:
                found[-1] = [("modulation", "attention")[b % 2] for b in range(self.depths[-2])]
            self.token_mixers = [*found, "attention"]
        staged = ("hidden_sizes", "token_mixers", *_HEADS.values(), "mlp_ratios")
        self.per_stage(len(self.depths), *staged)
        odd = self.stem_kernel % 2 == 1
        self.require(odd, f"stem_kernel must be odd, not {self.stem_kernel}")
        self.check_names(token_mixers=MIXERS)
        for s, (depth, width) in enumerate(zip(self.depths, self.hidden_sizes)):
            names = self.mixers_of(s)
            told = f"token_mixers has {len(names)} names for the {depth} blocks of stage {s}"
            self.require(len(names) == depth, told)
            for name in set(names):
                heads = self.heads_of(name, s)
                told = f"{_HEADS[name]} {heads} does not divide the width {width} of stage {s}"
                self.require(heads > 0 and width % heads == 0, told)

    def mixers_of(self, stage: int) -> list[str]:
        """A name of :data:`MIXERS` for each block of a stage."""
        assert self.token_mixers is not None
        named = self.token_mixers[stage]
        return [named] * self.depths[stage] if isinstance(named, str) else list(named)

    def heads_of(self, mixer: str, stage: int) -> int:
        """Heads of a mixer in a stage."""
        return getattr(self, _HEADS[mixer])[stage]


MIXERS: dict[str, Callable[[SMTConfig, int, int], nn.Module]] = {
    "modulation": lambda config, dim, heads: ScaleAwareModulation(
        dim, heads, config.modulation_ratio, bias=config.qkv_bias
    ),
    "attention": lambda config, dim, heads: AttentionWithLocalConv(
        dim, heads, qkv_bias=config.qkv_bias
    ),
}


class SMTForImageClassification(PyramidClassifier):
    """The SMT pyramid with a classifier. Every stage ends in a norm, and so does every map.

    Example:
        >>> sizes = {"depths": [1, 2, 1], "hidden_sizes": [8, 8, 16], "num_heads": 2}
        >>> SMTForImageClassification(SMTConfig(**sizes, mlp_ratios=2)).num_features
        16
    """

    def __init__(self, config: SMTConfig) -> None:
        super().__init__(config)
        widths, kernel = config.hidden_sizes, config.stem_kernel
        rows = [
            Conv(widths[0], kernel, 2, kernel // 2, bias=False, norm="bn2d", act="relu"),
            Conv(widths[0], 2, 2, norm="ln", eps=EMBED_EPS),
        ]
        self.stem = ConvStem(config.num_channels, rows)
        self.stages = nn.ModuleList(_stage(config, s, row) for s, row in enumerate(config.rates))
        self.finish(None, widths[-1], widths)

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        fan_out = conv.weight[0, 0].numel() * conv.out_channels // conv.groups
        nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)

    @classmethod
    def state_dict_converters(cls, config: SMTConfig) -> dict[str, StateDictConverter]:
        return {} if config.fused else {"official": _official(config)}

    @classmethod
    def config_from_state_dict(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Depths and mixers of a released file: one variant is published in two depths."""
        mixers: dict[int, dict[int, str]] = {}
        for name in tensors:
            found = re.fullmatch(r"block(\d+)\.(\d+)\.norm1\.weight", name)
            if found:
                modulates = f"{name.removesuffix('norm1.weight')}attn.s.weight" in tensors
                kind = "modulation" if modulates else "attention"
                mixers.setdefault(int(found[1]), {})[int(found[2])] = kind
        rows = [[row[b] for b in sorted(row)] for _, row in sorted(mixers.items())]
        return {"depths": [len(row) for row in rows], "token_mixers": rows} if rows else {}


def _stage(config: SMTConfig, s: int, rates: list[float]) -> Stage:
    dim = config.hidden_sizes[s]
    hidden, norm = int(dim * config.mlp_ratios[s]), partial(nn.LayerNorm, dim, eps=EPS)
    blocks: list[nn.Module] = [
        Block(
            dim,
            MIXERS[mixer](config, dim, config.heads_of(mixer, s)),
            Mlp(dim, hidden, inside=ResidualDepthwiseConv(hidden)),
            norm,
            drop_path=rate,
            layer_scale=config.layer_scale_init,
        )
        for mixer, rate in zip(config.mixers_of(s), rates)
    ]
    before = Downsample(config.hidden_sizes[s - 1], dim, norm="ln", eps=EMBED_EPS) if s else None
    return Stage(BlockSequence(blocks), layout="tokens", downsample=before, norm=norm())


# Names in the authors' repository, AFeng-x/SMT
_IN_BLOCK = {
    **same("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
    "mlp.dwconv.dwconv": "mlp.inside.conv",
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "attn.proj": "mixer.proj",
}
_IN_MIXER = {
    "modulation": {
        **same("v", "s"),
        "proj0": "aggregate.expand",
        "bn": "aggregate.norm",
        "proj1": "aggregate.reduce",
    },
    "attention": {**same("q", "kv"), "local_conv": "local"},
}


def _official(config: SMTConfig) -> StateDictConverter:
    stem = {"conv.0": "conv0", "conv.1": "norm0", "conv.3": "conv1", "norm": "norm1"}
    names = {"head": "head.fc", **under("patch_embed1", "stem", stem)}
    for s in range(len(config.depths)):
        names[f"norm{s + 1}"] = f"stages.{s}.norm"
        if s:
            proj = {"proj": "conv", "norm": "norm"}
            names |= under(f"patch_embed{s + 1}", f"stages.{s}.downsample", proj)
        for b, mixer in enumerate(config.mixers_of(s)):
            inside = dict(_IN_MIXER[mixer])
            if mixer == "modulation":
                heads = range(config.heads_of(mixer, s))
                inside |= {f"local_conv_{h + 1}": f"mix.heads.{h}" for h in heads}
            in_block = {**_IN_BLOCK, **under("attn", "mixer", inside)}
            names |= under(f"block{s + 1}.{b}", f"stages.{s}.blocks.{b}", in_block)
    return StateDictConverter(names)


_BASE = {"depths": (4, 6, 28, 2), "mlp_ratios": (8, 6, 4, 2), "stem_kernel": 7}
_LARGE = {
    **_BASE,
    "depths": (4, 6, 28, 4),
    "hidden_sizes": (96, 192, 384, 768),
    "layer_scale_init": 1e-4,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "smt_tiny": {"drop_path_rate": 0.1},
    "smt_small": {"depths": (3, 4, 18, 2), "drop_path_rate": 0.2},
    "smt_base": {**_BASE, "drop_path_rate": 0.3},
    "smt_large": {**_LARGE, "drop_path_rate": 0.4},
    "smt_large_384": {**_LARGE, "image_size": 384, "drop_path_rate": 0.1},
}

register_architecture(SMTConfig, SMTForImageClassification, VARIANTS)
