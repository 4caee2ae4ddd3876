"""The residual network (arXiv 1512.03385), its stride in the middle of a bottleneck."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import Names, StateDictConverter, under
from modwright.nn.conv_backbone import BRANCHES, ResNetStages

__all__ = ["VARIANTS", "ResidualNetworkConfig", "ResidualNetworkForImageClassification"]


class ResidualNetworkConfig(ImageConfig):
    """Structure of a residual network.

    Attributes:
        branch: "basic", two convolutions per block, or "bottleneck", three.
        stem_width: channels of the first convolution.
    """

    model_type = "residual_network"
    attribute_map = {"widths": "hidden_sizes"}

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    branch: str = "bottleneck"
    stem_width: int = 64
    fused: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.per_stage(len(self.depths), "hidden_sizes")
        self.check_names(branch=BRANCHES)
        fit = self.branch != "bottleneck" or not any(width % 4 for width in self.hidden_sizes)
        self.require(
            fit, f"hidden_sizes of bottlenecks are multiples of 4, not {self.hidden_sizes}"
        )

    @property
    def convs(self) -> int:
        """Convolutions of a block's branch."""
        return len(BRANCHES[self.branch](4, 1))


class ResidualNetworkForImageClassification(PyramidClassifier):
    """A residual network with a classifier.

    Example:
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "stem_width": 8}
        >>> ResidualNetworkForImageClassification(ResidualNetworkConfig(**sizes)).num_features
        16
    """

    def __init__(self, config: ResidualNetworkConfig) -> None:
        super().__init__(config)
        pyramid = ResNetStages(
            config.num_channels,
            config.hidden_sizes,
            config.depths,
            config.branch,
            config.stem_width,
            config.rates,
        )
        self.stem, self.stages = pyramid.stem, pyramid.stages
        self.finish(None, config.hidden_sizes[-1], config.hidden_sizes)

    def initialize_linear(self, linear: nn.Linear) -> None:
        linear.reset_parameters()

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        return {"resnet": _RESNET}

    @classmethod
    def state_dict_converters(cls, config: ResidualNetworkConfig) -> dict[str, StateDictConverter]:
        if config.fused:
            return {}
        return {"torchvision": _torchvision(config), "transformers": _transformers(config)}


def _torchvision(config: ResidualNetworkConfig) -> StateDictConverter:
    """torchvision, timm and the files of the authors' successors."""
    names: dict[str, str] = {"conv1": "stem.conv0", "bn1": "stem.norm0", "fc": "head.fc"}
    in_block = {"downsample.0": "shortcut.conv0", "downsample.1": "shortcut.norm0"}
    for i in range(config.convs):
        in_block |= {f"conv{i + 1}": f"branch.conv{i}", f"bn{i + 1}": f"branch.norm{i}"}
    for s, depth in enumerate(config.depths):
        for b in range(depth):
            names |= under(f"layer{s + 1}.{b}", f"stages.{s}.blocks.{b}", in_block)
    return StateDictConverter(names)


def _transformers(config: ResidualNetworkConfig) -> StateDictConverter:
    """transformers' ResNet."""

    def pair(theirs: str, ours: str, i: int = 0) -> Names:
        parts = {"convolution": f"conv{i}", "normalization": f"norm{i}"}
        return under(theirs, ours, parts)

    in_block = {**pair("shortcut", "shortcut")}
    for i in range(config.convs):
        in_block |= pair(f"layer.{i}", "branch", i)
    names = {"classifier.1": "head.fc", **pair("resnet.embedder.embedder", "stem")}
    for s, depth in enumerate(config.depths):
        for b in range(depth):
            layer = f"resnet.encoder.stages.{s}.layers.{b}"
            names |= under(layer, f"stages.{s}.blocks.{b}", in_block)
    return StateDictConverter(names)


_RESNET = ConfigMap(
    "ResNetForImageClassification",
    same=("num_channels", "hidden_sizes", "depths"),
    renamed={"embedding_size": "stem_width", "layer_type": "branch"},
    only={
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
)

_BASIC = {"branch": "basic", "hidden_sizes": (64, 128, 256, 512)}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {**_BASIC, "depths": (2, 2, 2, 2)},
    "resnet34": {**_BASIC, "depths": (3, 4, 6, 3)},
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
}

register_architecture(ResidualNetworkConfig, ResidualNetworkForImageClassification, VARIANTS)
