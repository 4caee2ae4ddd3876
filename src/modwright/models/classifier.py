"""What every classifier of images here has in common: config, vocabulary, initialization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from modwright.core.errors import InvalidInputError
from modwright.models.vision_model import VisionConfig, VisionModel, check_count
from modwright.nn.heads import ClassifierHead
from modwright.nn.layouts import SpatialShape, to_feature_map

__all__ = [
    "ImageClassifier",
    "ImageConfig",
    "PyramidClassifier",
    "TokenClassifier",
    "chosen_indices",
]


@strict
class ImageConfig(VisionConfig):
    """Fields that classifiers have besides those of all models of images.

    Attributes:
        drop_rate: dropout before the classifier and on what is added to the stream's start.
        drop_path_rate: stochastic depth of the last block.
        global_pool: "avg", "token" or "".
    """

    drop_rate: float | int = 0.0
    drop_path_rate: float | int = 0.0
    global_pool: str = "avg"

    @classmethod
    def field_names(cls) -> list[str]:
        """Names that its constructor takes and that mean something to a model of this kind."""
        return sorted([*super().field_names(), "num_labels", "id2label", "label2id"])


def chosen_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Which of ``count`` are meant: the last n, those listed (negative from the end), or all.

    Raises:
        InvalidInputError: one is not there.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise InvalidInputError(f"the last {indices} of {count} feature maps are not there")
        return list(range(count - indices, count))
    for index in indices:
        if not -count <= index < count:
            raise InvalidInputError(f"feature map {index} is not there: valid are 0 to {count - 1}")
    return [index % count for index in indices]


class ImageClassifier(VisionModel):
    """A classifier of images (B, C, H, W).

    A subclass builds its parts and calls ``post_init()``. It has a ``head`` and gives
    ``feature_info``, ``forward_features`` and ``forward_maps``.
    """

    config_class = ImageConfig
    num_prefix_tokens = 0

    head: Any
    feature_info: list[dict[str, Any]]

    @property
    def num_features(self) -> int:
        """Channels of the features."""
        return int(self.head.dim)

    @property
    def head_hidden_size(self) -> int:
        """Channels before the classifier."""
        return int(self.head.dim)

    def make_head(self, num_features: int, **more: Any) -> ClassifierHead:
        """The classifier that the config asks for, on so many features."""
        config = self.config
        return ClassifierHead(
            num_features, config.num_labels, pool=config.global_pool, drop=config.drop_rate, **more
        )

    def forward_features(self, pixel_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Features before pooling, after the last norm where the model has it there.

        Args:
            maps: a list that all feature maps on the way are put into.
        """
        raise NotImplementedError

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        """All feature maps in order, (B, C, H, W) each."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier; without the classifier's map if ``pre_logits``."""
        out: Tensor = self.head(features, pre_logits)
        return out

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **ignored: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits, and the cross-entropy where labels are given.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) indices of classes, or (B, classes) probabilities.
            output_hidden_states: gives the feature maps, too.
        """
        maps: list[Tensor] | None = [] if output_hidden_states else None
        logits = self.forward_head(self.forward_features(pixel_values, maps))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        hidden = None if maps is None else tuple(maps)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=hidden)

    def forward_intermediates(
        self,
        pixel_values: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> list[Tensor]:
        """Feature maps: the last n, those listed, or all.

        Args:
            norm: the last norm is applied to each, where the model's kind allows it.
            output_fmt: "NCHW" maps or "NLC" tokens.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InvalidInputError(f"unknown output_fmt {output_fmt!r}; valid values: NCHW, NLC")
        self.check_pixels(pixel_values)
        wanted = chosen_indices(indices, len(self.feature_info))
        maps = list(self.forward_maps(pixel_values, norm))
        if output_fmt == "NLC":
            maps = [found.flatten(2).transpose(1, 2) for found in maps]
        return [maps[index] for index in wanted]

    def get_classifier(self) -> nn.Module:
        """The map to classes."""
        found: nn.Module = self.head.fc
        return found

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh map for another number of classes; 0 leaves the pooled features."""
        check_count("num_classes", num_classes, least=0)
        self.head.reset(num_classes, global_pool)
        for classifier in self.head.classifiers():
            self._init_weights(classifier)
            classifier.to(self.device, self.dtype)
        self.config.num_labels = num_classes
        self.config.global_pool = self.head.pool


class PyramidClassifier(ImageClassifier):
    """Stem, stages of maps, a norm over the last map, a head.

    A subclass has ``stem``, ``stages`` and ``norm``.
    """

    min_size = 32
    stem: nn.Module
    stages: nn.ModuleList
    norm: nn.Module | None

    def describe_features(self, hidden_sizes: Sequence[int], first_stride: int = 4) -> None:
        """Writes ``feature_info`` for stages that halve the map each."""
        self.feature_info = [
            {"module": f"stages.{s}", "num_chs": width, "reduction": first_stride * 2**s}
            for s, width in enumerate(hidden_sizes)
        ]

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        x = self.stem(pixel_values)
        last = len(self.stages) - 1
        for s, stage in enumerate(self.stages):
            x = stage(x)
            yield self.norm(x) if norm and s == last and self.norm is not None else x

    def forward_features(self, pixel_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        self.check_pixels(pixel_values)
        features = pixel_values
        for features in self.forward_maps(pixel_values):
            if maps is not None:
                maps.append(features)
        return features if self.norm is None else self.norm(features)


class TokenClassifier(ImageClassifier):
    """Tokens of one grid through all blocks, a norm, a head. Has ``blocks``, ``norm``.

    A subclass gives ``embed``: images -> (the stream, its grid); where the stream is more than
    one tensor, ``tokens`` picks the one that is classified.
    """

    blocks: Any
    norm: nn.Module

    def embed(self, pixel_values: Tensor) -> tuple[Any, SpatialShape]:
        """The stream before the first block, and its grid."""
        raise NotImplementedError

    def tokens(self, stream: Any) -> Tensor:
        """The tokens (B, prefix + N, C) of a stream."""
        found: Tensor = stream
        return found

    def describe_features(self, hidden_size: int, stride: int, depths: int) -> None:
        """Writes ``feature_info``: every block gives a map of the same grid."""
        self.feature_info = [
            {"module": f"blocks.{b}", "num_chs": hidden_size, "reduction": stride}
            for b in range(depths)
        ]

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        stream, spatial_shape = self.embed(pixel_values)
        for block in self.blocks:
            stream = self.blocks.run(block, stream, spatial_shape)
            found = self.tokens(stream)
            found = self.norm(found) if norm else found
            yield to_feature_map(found[:, self.num_prefix_tokens :], spatial_shape)

    def forward_features(self, pixel_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        self.check_pixels(pixel_values)
        stream, spatial_shape = self.embed(pixel_values)
        for block in self.blocks:
            stream = self.blocks.run(block, stream, spatial_shape)
            if maps is not None:
                maps.append(
                    to_feature_map(self.tokens(stream)[:, self.num_prefix_tokens :], spatial_shape)
                )
        features: Tensor = self.norm(self.tokens(stream))
        return features
