"""What every classifier of images here has in common: config, vocabulary, feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from modwright.core.errors import InvalidInputError
from modwright.models.vision_model import VisionConfig, VisionModel, check_count
from modwright.nn.block import drop_path_rates
from modwright.nn.grid_positions import LearnedTable, PrefixTokens
from modwright.nn.heads import ClassifierHead
from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.norms2d import make_norm

__all__ = [
    "FeatureInfo",
    "FeatureMaps",
    "ImageClassifier",
    "ImageConfig",
    "PyramidClassifier",
    "TokenClassifier",
    "chosen_indices",
]


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

    inherited_fields = ("dtype", "num_labels", "id2label", "label2id")

    @property
    def rates(self) -> list[list[float]]:
        """Stochastic depth of each block, per stage of ``depths``."""
        depths = vars(self)["depths"]
        return drop_path_rates(self.drop_path_rate, [depths] if isinstance(depths, int) else depths)


def chosen_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Which of ``count`` are meant: the last n, those listed (negative from the end), or all."""
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
    """A classifier of images (B, C, H, W). A subclass ends its building by ``finish()``."""

    config_class = ImageConfig
    num_prefix_tokens = 0
    # Where feature maps come from, and how much coarser each is than the one before.
    maps_of, coarser = "stages", 2

    norm: Any
    head: Any
    feature_info: list[dict[str, Any]]

    def finish(
        self,
        norm: nn.Module | None,
        num_features: int,
        hidden_sizes: Sequence[int],
        stride: int = 4,
        head: type[ClassifierHead] = ClassifierHead,
        head_norm: nn.Module | None = None,
    ) -> None:
        """Ends the building: norm and head of the last features, what is said of all maps.

        ``hidden_sizes`` are the channels of each map, ``stride`` the pixels per position
        of the first; ``head_norm`` stands behind the head's pooling.
        """
        config = self.config
        self.norm = norm
        self.head = head(
            num_features,
            config.num_labels,
            pool=config.global_pool,
            prefix=self.num_prefix_tokens,
            norm=head_norm,
            drop=config.drop_rate,
        )
        of, step = self.maps_of, self.coarser
        self.feature_info = [
            {"module": f"{of}.{i}", "num_chs": width, "reduction": stride * step**i}
            for i, width in enumerate(hidden_sizes)
        ]
        self.post_init()

    @property
    def num_features(self) -> int:
        """Channels of the features."""
        return int(self.head.dim)

    head_hidden_size = num_features

    def steps(self, pixel_values: Tensor) -> Iterator[tuple[Tensor, SpatialShape | None]]:
        """Features before the first step and behind each; with their grid where they are tokens."""
        raise NotImplementedError

    def _map(self, found: Tensor, grid: SpatialShape | None) -> Tensor:
        return found if grid is None else to_feature_map(found[:, self.num_prefix_tokens :], grid)

    def forward_maps(self, pixel_values: Tensor, norm: bool = False) -> Iterator[Tensor]:
        """All feature maps in order, (B, C, H, W) each, with ``norm`` where it fits."""
        norm, last = norm and self.norm is not None, len(self.feature_info)
        for index, (found, grid) in enumerate(self.steps(pixel_values)):
            if index:
                normed = norm and (grid is not None or index == last)
                yield self._map(self.norm(found) if normed else found, grid)

    def forward_features(self, pixel_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Features before pooling; all maps on the way are put into the list ``maps``."""
        self.check_pixels(pixel_values)
        for index, (found, grid) in enumerate(self.steps(pixel_values)):
            if index and maps is not None:
                maps.append(self._map(found, grid))
        return found if self.norm is None else self.norm(found)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier; without the classifier's map if ``pre_logits``."""
        return self.head(features, pre_logits)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **ignored: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits, and the cross-entropy where labels are given; feature maps if asked for.

        Labels are indices of classes (B,) or probabilities (B, classes).
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
        """Feature maps: the last n, those listed, or all; "NCHW" maps or "NLC" tokens.

        With ``norm`` the last norm is applied to each, where the model's kind allows it.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InvalidInputError(f"unknown output_fmt {output_fmt!r}; valid values: NCHW, NLC")
        self.check_pixels(pixel_values)
        wanted = chosen_indices(indices, len(self.feature_info))
        maps = list(self.forward_maps(pixel_values, norm))
        return [maps[i] if output_fmt == "NCHW" else to_tokens(maps[i]) for i in wanted]

    def get_classifier(self) -> nn.Module:
        """The map to classes."""
        return self.head.fc

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
    """A ``stem``, ``stages`` of maps that halve, a norm over the last map, a head."""

    min_size = 32
    stem: nn.Module
    stages: nn.ModuleList

    def steps(self, pixel_values: Tensor) -> Iterator[tuple[Tensor, SpatialShape | None]]:
        x = self.stem(pixel_values)
        yield x, None
        for stage in self.stages:
            x = stage(x)
            yield x, None


class TokenClassifier(ImageClassifier):
    """Tokens of one grid through all blocks, a norm, a head.

    A subclass has ``stem`` and ``blocks`` and calls ``begin_stream()``, or has an ``embed`` of its
    own. Where the stream is more than one tensor, ``tokens`` picks the one that is classified.
    """

    maps_of, coarser = "blocks", 1
    stem: Any
    blocks: Any

    def begin_stream(
        self, hidden_size: int, names: Sequence[str] = ("cls_token",), **table: Any
    ) -> None:
        """Prefix tokens of these names, positions of the config's grid, dropout."""
        self.num_prefix_tokens = len(names)
        self.prefix = PrefixTokens(hidden_size, names, table.get("std", 0.02))
        self.positions = LearnedTable(hidden_size, self.config.grid, len(names), **table)
        self.drop = nn.Dropout(self.config.drop_rate)

    def embed(self, pixel_values: Tensor) -> tuple[Any, SpatialShape]:
        """The stream before the first block, and its grid."""
        x = self.stem(pixel_values)
        spatial_shape = (x.shape[2], x.shape[3])
        return self.drop(self.positions(self.prefix(to_tokens(x)), spatial_shape)), spatial_shape

    def tokens(self, stream: Any) -> Tensor:
        """The tokens (B, prefix + N, C) of a stream."""
        return stream

    def steps(self, pixel_values: Tensor) -> Iterator[tuple[Tensor, SpatialShape | None]]:
        stream, spatial_shape = self.embed(pixel_values)
        yield self.tokens(stream), spatial_shape
        for block in self.blocks:
            stream = self.blocks.run(block, stream, spatial_shape)
            yield self.tokens(stream), spatial_shape


class FeatureInfo(list[dict[str, Any]]):
    """What the maps are, in timm's words."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [int(entry["num_chs"]) for entry in self]

    def reduction(self) -> list[int]:
        """Pixels of the image per position of each map, along one side."""
        return [int(entry["reduction"]) for entry in self]

    def module_name(self) -> list[str]:
        """Where each map comes from."""
        return [str(entry["module"]) for entry in self]


class FeatureMaps(nn.Module):
    """A classifier without its head, for detection: (B, C, H, W) -> a list of maps.

    Args:
        model: its classifier is emptied.
        out_indices: the last n maps, or those listed; all unless it is said.
        norm: name of a fresh norm on each map, as detection with PoolFormer has it.

    Example:
        >>> import torch
        >>> from modwright.models import create_model
        >>> backbone = create_model("poolformer_s12", features_only=True, depths=[1, 1, 1, 1])
        >>> backbone.feature_info.reduction()
        [4, 8, 16, 32]
        >>> [tuple(m.shape[2:]) for m in backbone(torch.zeros(1, 3, 64, 96))]
        [(16, 24), (8, 12), (4, 6), (2, 3)]
    """

    def __init__(
        self,
        model: ImageClassifier,
        out_indices: int | Sequence[int] | None = None,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.out_indices = chosen_indices(out_indices, len(model.feature_info))
        self.feature_info = FeatureInfo(model.feature_info[i] for i in self.out_indices)
        model.reset_classifier(0)
        self.model = model
        self.norms = nn.ModuleList(
            make_norm(norm, width, layout="map") for width in self.feature_info.channels()
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        found = self.model.forward_intermediates(pixel_values, self.out_indices)
        return [norm(feature) for norm, feature in zip(self.norms, found)]
