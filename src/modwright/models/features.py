"""A classifier without its head: a list of feature maps, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from modwright.models.classifier import ImageClassifier, chosen_indices
from modwright.nn.norms2d import make_norm

__all__ = ["FeatureInfo", "FeatureMaps"]


class FeatureInfo(list[dict[str, Any]]):
    """What the maps are, in timm's words."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [int(entry["num_chs"]) for entry in self]

    def reduction(self) -> list[int]:
        """Pixels of the image per place of each map, along one side."""
        return [int(entry["reduction"]) for entry in self]

    def module_name(self) -> list[str]:
        """Where each map comes from."""
        return [str(entry["module"]) for entry in self]


class FeatureMaps(nn.Module):
    """A backbone: (B, C, H, W) -> a list of maps (B, C', H', W').

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
