"""Tokens to token: overlapping windows of an image, mixed and cut again (arXiv 2101.11986)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.layouts import SpatialShape, to_feature_map
from modwright.nn.token_mixers.self_attention import SelfAttention

__all__ = ["SPLITS", "SoftSplit", "T2TStem", "TokenLayer"]

# (kernel, stride, padding) of the paper's three splits: together one token per 16 x 16 pixels
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class SoftSplit(nn.Module):
    """Every window of a map becomes one token: all channels of its first position, of its next, ...

    (B, C, H, W) -> (B, H' W', C kernel^2), with H' = (H + 2 padding - kernel) // stride + 1.
    Channels are ordered by channel first and by position second: a linear layer behind it is a
    convolution.

    Example:
        >>> import torch
        >>> split = SoftSplit(7, 4, 2)
        >>> split(torch.zeros(1, 3, 32, 48)).shape, split.spatial_shape((32, 48))
        (torch.Size([1, 96, 147]), (8, 12))
    """

    def __init__(self, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.unfold = nn.Unfold(kernel, padding=padding, stride=stride)

    def spatial_shape(self, size: SpatialShape) -> SpatialShape:
        """(H', W') of a map of ``size``."""
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in size)
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        return self.unfold(x).transpose(1, 2)


class TokenLayer(nn.Module):
    """A Transformer layer that narrows tokens: y = v + attention, y + MLP(norm(y)).

    (B, N, C) -> (B, N, attention.width). The values stand in for the stream in the first residual,
    which has other widths at its ends. ``drop`` is behind the MLP.

    Example:
        >>> import torch
        >>> TokenLayer(27, SelfAttention(27, 1, out_dim=8))(torch.zeros(1, 5, 27)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"

    def __init__(self, dim: int, attention: SelfAttention, drop: float = 0.0) -> None:
        super().__init__()
        width = attention.width
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        q, k, v = self.attention.heads(self.norm1(x))
        mixed = self.attention.finish(self.attention.attend(q, k, v, spatial_shape))
        y = v.transpose(1, 2).flatten(2) + mixed
        return y + self.drop(self.mlp(self.norm2(y)))


class T2TStem(nn.Module):
    """Splits a map softly and narrows the tokens, again and again; a linear layer ends it.

    (B, C, H, W) -> (B, dim, H / 16, W / 16). ``layer`` makes what stands behind each split but the
    last, from (channels in, token_dim).

    Example:
        >>> import torch
        >>> def layer(channels, width):
        ...     return TokenLayer(channels, SelfAttention(channels, 1, out_dim=width))
        >>> T2TStem(3, 16, 8, layer)(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 16, 2, 3])
    """

    def __init__(
        self, in_channels: int, dim: int, token_dim: int, layer: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.splits = nn.ModuleList(SoftSplit(*split) for split in SPLITS)
        widths = [in_channels, *[token_dim] * (len(SPLITS) - 1)]
        widths = [width * kernel**2 for width, (kernel, _, _) in zip(widths, SPLITS)]
        self.layers = nn.ModuleList(layer(width, token_dim) for width in widths[:-1])
        self.project = nn.Linear(widths[-1], dim)

    def forward(self, x: Tensor) -> Tensor:
        splits: Any = self.splits
        for split, layer in zip(splits, (*self.layers, self.project)):
            x = to_feature_map(layer(split(x)), split.spatial_shape(x.shape[2:]))
        return x
