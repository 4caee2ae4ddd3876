"""SMT (arXiv 2307.08579): modulation by convolutions in early stages, attention in late ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.state_dict_converter import Rename, StateDictConverter
from modwright.nn.block import Block, BlockSequence
from modwright.nn.channel_mixers.mlp import Mlp, ResidualDepthwiseConv
from modwright.nn.residual import drop_path_rates
from modwright.nn.stage import Stage
from modwright.nn.stems.conv_stem import Conv, ConvStem, Downsample
from modwright.nn.token_mixers.local_attention import AttentionWithLocalConv
from modwright.nn.token_mixers.scale_aware_modulation import ScaleAwareModulation

__all__ = ["MIXERS", "VARIANTS", "SMTConfig", "SMTForImageClassification"]

# The released models have another eps in the norms behind stem and downsampling than elsewhere.
EPS, EMBED_EPS = 1e-6, 1e-5
# A mixer, and the field that has its heads.
_HEADS = {"modulation": "modulation_heads", "attention": "num_heads"}


@strict
class SMTConfig(ImageConfig):
    """Structure of an SMT.

    Attributes:
        depths: blocks per stage.
        hidden_sizes: channels per stage.
        token_mixers: per stage a name of :data:`MIXERS`, or one for each of its blocks. Unless it
            is said, the last stage has attention, the one before it takes turns, modulation first,
            and all others have modulation.
        modulation_heads: kernel sizes of modulation, one number per stage, or one for all.
        num_heads: heads of attention, likewise. Where a stage has no such mixer its number
            is not looked at.
        mlp_ratios: neurons per channel, likewise.
        modulation_ratio: channels inside the aggregation of scales, per channel.
        stem_kernel: side of the first kernel, odd.
        qkv_bias: biases of the maps to queries, keys, values and modulators.
        layer_scale_init: start of the factor per channel; None has none.
        fused: the form for inference: batch norms are folded. See
            ``modwright.models.reparameterize``.
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
        stages = len(self.depths)
        if self.token_mixers is None:
            self.token_mixers = _hybrid(self.depths)
        heads = ("modulation_heads", "num_heads")
        self.per_stage(stages, "hidden_sizes", "token_mixers", *heads, "mlp_ratios")
        if self.stem_kernel % 2 == 0:
            raise InvalidInputError(f"stem_kernel must be odd, not {self.stem_kernel}")
        for s in range(stages):
            self._check_mixers(s)

    def mixers_of(self, stage: int) -> list[str]:
        """A name of :data:`MIXERS` for each block of a stage."""
        assert self.token_mixers is not None
        named = self.token_mixers[stage]
        return [named] * self.depths[stage] if isinstance(named, str) else list(named)

    def heads_of(self, mixer: str, stage: int) -> int:
        """Heads of a mixer in a stage."""
        found: int = getattr(self, _HEADS[mixer])[stage]
        return found

    def _check_mixers(self, stage: int) -> None:
        names, depth, width = self.mixers_of(stage), self.depths[stage], self.hidden_sizes[stage]
        if len(names) != depth:
            raise InvalidInputError(
                f"token_mixers has {len(names)} names for the {depth} blocks of stage {stage}"
            )
        for name in set(names):
            if name not in MIXERS:
                raise unknown_name("token mixer", name, MIXERS)
            heads = self.heads_of(name, stage)
            if heads < 1 or width % heads:
                raise InvalidInputError(
                    f"{_HEADS[name]} {heads} does not divide the width {width} of stage {stage}"
                )


def _hybrid(depths: list[int] | tuple[int, ...]) -> list[Any]:
    """The released models' mixers for some depths."""
    found: list[Any] = ["modulation"] * len(depths)
    found[-1] = "attention"
    if len(depths) > 1:
        pair = ("modulation", "attention")
        found[-2] = [pair[b % 2] for b in range(depths[-2])]
    return found


def _modulation(config: SMTConfig, dim: int, heads: int) -> nn.Module:
    return ScaleAwareModulation(dim, heads, config.modulation_ratio, bias=config.qkv_bias)


def _attention(config: SMTConfig, dim: int, heads: int) -> nn.Module:
    return AttentionWithLocalConv(dim, heads, qkv_bias=config.qkv_bias)


MIXERS: dict[str, Callable[[SMTConfig, int, int], nn.Module]] = {
    "modulation": _modulation,
    "attention": _attention,
}


class SMTForImageClassification(PyramidClassifier):
    """The SMT pyramid with a classifier. Every stage ends in a norm, and so does every map.

    Example:
        >>> import torch
        >>> sizes = {"depths": [1, 2, 1], "hidden_sizes": [8, 8, 16], "num_heads": 2}
        >>> model = SMTForImageClassification(SMTConfig(**sizes, mlp_ratios=2, num_labels=5))
        >>> model(torch.zeros(1, 3, 32, 48)).logits.shape
        torch.Size([1, 5])
    """

    config_class = SMTConfig

    def __init__(self, config: SMTConfig) -> None:
        super().__init__(config)
        first, kernel = config.hidden_sizes[0], config.stem_kernel
        rows = [
            Conv(first, kernel, 2, kernel // 2, bias=False, norm="bn2d", act="relu"),
            Conv(first, 2, 2, norm="ln", eps=EMBED_EPS),
        ]
        self.stem = ConvStem(config.num_channels, rows)
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nn.ModuleList(_stage(config, s, row) for s, row in enumerate(rates))
        self.norm = None
        self.head = self.make_head(config.hidden_sizes[-1])
        self.describe_features(config.hidden_sizes)
        self.post_init()

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
        if not mixers:
            return {}
        rows = [[row[b] for b in sorted(row)] for _, row in sorted(mixers.items())]
        return {"depths": [len(row) for row in rows], "token_mixers": rows}


def _stage(config: SMTConfig, s: int, rates: list[float]) -> Stage:
    dim = config.hidden_sizes[s]
    hidden = int(dim * config.mlp_ratios[s])
    blocks: list[nn.Module] = [
        Block(
            dim,
            MIXERS[mixer](config, dim, config.heads_of(mixer, s)),
            Mlp(dim, hidden, inside=ResidualDepthwiseConv(hidden)),
            lambda: nn.LayerNorm(dim, eps=EPS),
            drop_path=rate,
            layer_scale=config.layer_scale_init,
        )
        for mixer, rate in zip(config.mixers_of(s), rates)
    ]
    before = Downsample(config.hidden_sizes[s - 1], dim, norm="ln", eps=EMBED_EPS) if s else None
    return Stage(
        BlockSequence(blocks),
        layout="tokens",
        downsample=before,
        norm=nn.LayerNorm(dim, eps=EPS),
    )


# Names in the authors' repository, AFeng-x/SMT

_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.inside.conv",
    "mlp.fc2": "mlp.fc2",
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "attn.proj": "mixer.proj",
}
_IN_MIXER = {
    "modulation": {
        "v": "v",
        "s": "s",
        "proj0": "aggregate.expand",
        "bn": "aggregate.norm",
        "proj1": "aggregate.reduce",
    },
    "attention": {"q": "q", "kv": "kv", "local_conv": "local"},
}


def _official(config: SMTConfig) -> StateDictConverter:
    rules = [
        Rename("patch_embed1.conv.0", "stem.conv0"),
        Rename("patch_embed1.conv.1", "stem.norm0"),
        Rename("patch_embed1.conv.3", "stem.conv1"),
        Rename("patch_embed1.norm", "stem.norm1"),
    ]
    for s in range(len(config.depths)):
        if s:
            theirs, ours = f"patch_embed{s + 1}", f"stages.{s}.downsample"
            rules += [
                Rename(f"{theirs}.proj", f"{ours}.conv"),
                Rename(f"{theirs}.norm", f"{ours}.norm"),
            ]
        for b, mixer in enumerate(config.mixers_of(s)):
            theirs, ours = f"block{s + 1}.{b}", f"stages.{s}.blocks.{b}"
            names = _IN_BLOCK | {f"attn.{t}": f"mixer.{o}" for t, o in _IN_MIXER[mixer].items()}
            if mixer == "modulation":
                heads = config.heads_of(mixer, s)
                names |= {f"attn.local_conv_{h + 1}": f"mixer.mix.heads.{h}" for h in range(heads)}
            rules += [
                Rename(f"{theirs}.{there}", f"{ours}.{here}") for there, here in names.items()
            ]
        rules.append(Rename(f"norm{s + 1}", f"stages.{s}.norm"))
    return StateDictConverter((*rules, Rename("head", "head.fc")))


_LARGE = {
    "depths": (4, 6, 28, 4),
    "hidden_sizes": (96, 192, 384, 768),
    "mlp_ratios": (8, 6, 4, 2),
    "stem_kernel": 7,
    "layer_scale_init": 1e-4,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "smt_tiny": {"drop_path_rate": 0.1},
    "smt_small": {"depths": (3, 4, 18, 2), "drop_path_rate": 0.2},
    "smt_base": {
        "depths": (4, 6, 28, 2),
        "mlp_ratios": (8, 6, 4, 2),
        "stem_kernel": 7,
        "drop_path_rate": 0.3,
    },
    "smt_large": {**_LARGE, "drop_path_rate": 0.4},
    "smt_large_384": {**_LARGE, "image_size": 384, "drop_path_rate": 0.1},
}

register_architecture(SMTConfig, SMTForImageClassification, VARIANTS)
