"""The residual network (arXiv 1512.03385), its stride in the middle of a bottleneck."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.models.classifier import ImageConfig, PyramidClassifier
from modwright.models.registry import register_architecture
from modwright.models.source_configs import ConfigMap
from modwright.models.state_dict_converter import Rename, StateDictConverter
from modwright.nn.residual import drop_path_rates
from modwright.nn.resnet_stages import BRANCHES, ResNetStages

__all__ = ["VARIANTS", "ResidualNetworkConfig", "ResidualNetworkForImageClassification"]


@strict
class ResidualNetworkConfig(ImageConfig):
    """Structure of a residual network.

    Attributes:
        depths: blocks per stage.
        hidden_sizes: channels that go out of each stage.
        branch: "basic", two convolutions per block, or "bottleneck", three.
        stem_width: channels of the first convolution.
        fused: the form for inference: no norms. See ``modwright.models.reparameterize``.
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
        if self.branch not in BRANCHES:
            raise unknown_name("branch", self.branch, BRANCHES)
        if self.branch == "bottleneck" and any(width % 4 for width in self.hidden_sizes):
            raise InvalidInputError(
                f"hidden_sizes of bottlenecks are multiples of 4, not {self.hidden_sizes}"
            )

    @property
    def convs(self) -> int:
        """Convolutions of a block's branch."""
        return len(BRANCHES[self.branch](4, 1))


class ResidualNetworkForImageClassification(PyramidClassifier):
    """A residual network with a classifier.

    Example:
        >>> import torch
        >>> config = ResidualNetworkConfig(
        ...     depths=[1, 1], hidden_sizes=[8, 16], branch="basic", stem_width=8, num_labels=5)
        >>> model = ResidualNetworkForImageClassification(config)
        >>> model(torch.zeros(1, 3, 32, 48)).logits.shape
        torch.Size([1, 5])
    """

    config_class = ResidualNetworkConfig

    def __init__(self, config: ResidualNetworkConfig) -> None:
        super().__init__(config)
        pyramid = ResNetStages(
            config.num_channels,
            config.hidden_sizes,
            config.depths,
            config.branch,
            config.stem_width,
            drop_path_rates(config.drop_path_rate, config.depths),
        )
        self.stem, self.stages, self.norm = pyramid.stem, pyramid.stages, None
        self.head = self.make_head(config.hidden_sizes[-1])
        self.describe_features(config.hidden_sizes)
        self.post_init()

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


# Names in other libraries


def _torchvision(config: ResidualNetworkConfig) -> StateDictConverter:
    """torchvision, timm and the files of the authors' successors."""
    rules = [Rename("conv1", "stem.conv0"), Rename("bn1", "stem.norm0"), Rename("fc", "head.fc")]
    for s, depth in enumerate(config.depths):
        for b in range(depth):
            theirs, ours = f"layer{s + 1}.{b}", f"stages.{s}.blocks.{b}"
            for i in range(config.convs):
                rules.append(Rename(f"{theirs}.conv{i + 1}", f"{ours}.branch.conv{i}"))
                rules.append(Rename(f"{theirs}.bn{i + 1}", f"{ours}.branch.norm{i}"))
            rules.append(Rename(f"{theirs}.downsample.0", f"{ours}.shortcut.conv0"))
            rules.append(Rename(f"{theirs}.downsample.1", f"{ours}.shortcut.norm0"))
    return StateDictConverter(tuple(rules))


def _transformers(config: ResidualNetworkConfig) -> StateDictConverter:
    """transformers' ResNet."""
    places = [("resnet.embedder.embedder", "stem", 0)]
    for s, depth in enumerate(config.depths):
        for b in range(depth):
            theirs, ours = f"resnet.encoder.stages.{s}.layers.{b}", f"stages.{s}.blocks.{b}"
            places.append((f"{theirs}.shortcut", f"{ours}.shortcut", 0))
            for i in range(config.convs):
                places.append((f"{theirs}.layer.{i}", f"{ours}.branch", i))
    rules = [Rename("classifier.1", "head.fc")]
    for path, here, i in places:
        rules.append(Rename(f"{path}.convolution", f"{here}.conv{i}"))
        rules.append(Rename(f"{path}.normalization", f"{here}.norm{i}"))
    return StateDictConverter(tuple(rules))


_RESNET = ConfigMap(
    renamed={
        "num_channels": "num_channels",
        "embedding_size": "stem_width",
        "hidden_sizes": "hidden_sizes",
        "depths": "depths",
        "layer_type": "branch",
    },
    only={
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    architectures=("ResNetForImageClassification",),
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
