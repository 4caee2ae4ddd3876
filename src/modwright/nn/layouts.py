"""The two layouts of an image inside a model, and the way from one to the other.

A map is (B, C, H, W); tokens are (B, N, C) with N = H W in row-major order, and go with their grid
(H, W). Nothing here guesses a grid from N.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

__all__ = ["Layout", "SpatialShape", "call_in_layout", "to_feature_map", "to_tokens"]

SpatialShape = tuple[int, int]
Layout = Literal["map", "tokens"]


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C).

    Example:
        >>> import torch
        >>> to_tokens(torch.zeros(2, 8, 3, 5)).shape
        torch.Size([2, 15, 8])
    """
    return x.flatten(2).transpose(1, 2)


def to_feature_map(x: Tensor, spatial_shape: SpatialShape) -> Tensor:
    """(B, H W, C) -> (B, C, H, W). ValueError where the tokens do not fill the grid."""
    if x.shape[1] != spatial_shape[0] * spatial_shape[1]:
        raise ValueError(
            f"{x.shape[1]} tokens do not fill a grid of {spatial_shape[0]} x {spatial_shape[1]}"
        )
    return x.transpose(1, 2).unflatten(2, spatial_shape)


def call_in_layout(
    part: nn.Module, x: Tensor, spatial_shape: SpatialShape, layout: Layout, **extra: Any
) -> Tensor:
    """Runs a part on ``x``, which has ``layout``, in the layout that the part declares, if any."""
    wanted = getattr(part, "layout", layout)
    if wanted == layout:
        return part(x, spatial_shape, **extra)
    if wanted == "map":
        return to_tokens(part(to_feature_map(x, spatial_shape), spatial_shape, **extra))
    return to_feature_map(part(to_tokens(x), spatial_shape, **extra), spatial_shape)
