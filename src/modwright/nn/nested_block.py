"""Two streams, one inside the other: words of each patch, and a sentence token per patch.

Axes: B images, N patches of an image, m words of a patch, c channels of a word, d of a sentence.
"""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.block import Block
from modwright.nn.layouts import SpatialShape

__all__ = ["NestedBlock", "PixelToPatch"]

Streams = tuple[Tensor, Tensor]


class PixelToPatch(nn.Module):
    """All words of a patch, one after the other, mapped to what is said to its sentence token.

    (B N, m, c) with the number of images B -> (B, N, d). The norm before the map is over all
    channels, or with ``per_word`` over those of each word; ``last_norm`` stands behind it.

    Example:
        >>> import torch
        >>> PixelToPatch(4, 16, 24)(torch.zeros(6, 16, 4), images=2).shape
        torch.Size([2, 3, 24])
    """

    def __init__(
        self,
        inner_dim: int,
        pixel_tokens: int,
        outer_dim: int,
        *,
        bias: bool = False,
        per_word: bool = False,
        last_norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.per_word = per_word
        self.norm1 = nn.LayerNorm(inner_dim if per_word else pixel_tokens * inner_dim, eps=eps)
        self.proj = nn.Linear(pixel_tokens * inner_dim, outer_dim, bias=bias)
        self.norm2 = nn.LayerNorm(outer_dim, eps=eps) if last_norm else None

    def forward(self, pixel_tokens: Tensor, images: int) -> Tensor:
        x = pixel_tokens if self.per_word else pixel_tokens.flatten(1)
        x = self.proj(self.norm1(x).flatten(1))
        x = x if self.norm2 is None else self.norm2(x)
        return x.unflatten(0, (images, -1))


class NestedBlock(nn.Module):
    """A block over the words of each patch, and one over the sentences (arXiv 2103.00112).

    Words (B N, m, c) and sentences (B, prefix + N, d), with the grid of the patches -> the same
    two. In between, ``fuse`` makes of each patch's words what is added to its sentence token;
    prefix tokens get nothing. Without ``inner`` and ``fuse`` words pass and add nothing.

    Example:
        >>> import torch
        >>> from modwright.nn.channel_mixers.mlp import Mlp
        >>> inner, outer = (Block(d, None, Mlp(d, d), lambda: nn.Identity()) for d in (4, 8))
        >>> block = NestedBlock(inner, PixelToPatch(4, 9, 8), outer)
        >>> pixel_tokens, sentences = block((torch.zeros(2, 9, 4), torch.zeros(1, 3, 8)), (1, 2))
        >>> sentences.shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self, inner: Block | None, fuse: PixelToPatch | None, outer: Block, prefix: int = 1
    ) -> None:
        super().__init__()
        if (inner is None) != (fuse is None):
            raise ValueError("a block over words and the way to the sentences come together")
        self.inner, self.fuse, self.outer, self.prefix = inner, fuse, outer, prefix

    def forward(self, streams: Streams, spatial_shape: SpatialShape) -> Streams:
        pixel_tokens, sentences = streams
        if self.inner is not None and self.fuse is not None:
            # each patch is an image of its own to the inner block: one row of words
            pixel_tokens = self.inner(pixel_tokens, (1, pixel_tokens.shape[1]))
            said = self.fuse(pixel_tokens, sentences.shape[0])
            # not in place: the sentences may be needed again when activations are recomputed
            sentences = sentences + nn.functional.pad(said, (0, 0, self.prefix, 0))
        return pixel_tokens, self.outer(sentences, spatial_shape)
