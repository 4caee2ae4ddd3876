"""Pairs of small and large images (B, C, H, W) from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["SuperResolutionDataset", "bicubic", "sample_image_pairs"]

# Share of what is not held out that lies to the left of it.
_WHERE = {"left": 0.0, "middle": 0.5, "right": 1.0}


@dataclass(frozen=True)
class SuperResolutionDataset:
    """Small images with the large ones that they were made of, as transformers' Trainer takes it.

    Shapes:
        small (N, C, H, W), large (N, C, scale H, scale W).

    Example:
        >>> small, large = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 16, 16)
        >>> pairs = SuperResolutionDataset("none", small, large)
        >>> len(pairs), pairs.scale, pairs[0]["labels"].shape
        (4, 2, torch.Size([3, 16, 16]))
    """

    name: str
    small: Tensor
    large: Tensor

    @property
    def scale(self) -> int:
        """Pixels for one along each side."""
        return self.large.shape[-1] // self.small.shape[-1]

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.small[index], "labels": self.large[index]}

    def take(self, count: int) -> SuperResolutionDataset:
        """The first ``count`` of them; more than there are are refused."""
        if not 1 <= count <= len(self):
            raise InvalidInputError(f"{self.name} has {len(self)} pairs, not {count}")
        first = f"{self.name}, first {count}"
        return SuperResolutionDataset(first, self.small[:count], self.large[:count])


def bicubic(images: Tensor, scale: float) -> Tensor:
    """Cubic convolution with a = -1/2; where images get smaller, the kernel gets as much wider.

    Shapes:
        (B, C, H, W) -> (B, C, round(scale H), round(scale W)); values may overshoot their range.

    Example:
        >>> bicubic(torch.ones(1, 3, 8, 8), 0.5).shape
        torch.Size([1, 3, 4, 4])
    """
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    # torch's kernel without antialiasing has a = -3/4
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def sample_image_pairs(
    scale: int = 2,
    side: int = 16,
    train: int = 4800,
    test_side: int = 48,
    held_out: float = 0.3,
    where: str = "middle",
    seed: int = 0,
) -> tuple[SuperResolutionDataset, SuperResolutionDataset]:
    """Pieces of the two photos, 640 x 427 pixels, that scikit-learn brings (china, flower).

    One part of each is for testing and cut on a grid. Pieces of what lies to the left and right of
    it are drawn, turned and mirrored by chance. Every part is made smaller by itself, with
    :func:`bicubic`, and rounded to 8 bits; so no small pixel of one has seen another.

    Args:
        scale: large pixels for a small one, along each side.
        side: of small pieces to train on; ``test_side`` is of those to test on.
        train: how many of these, over both photos.
        held_out: share of the width that is for testing.
        where: it lies: "left", "middle" (with the subject), or "right" (mostly out of focus).

    Raises:
        InvalidInputError: scikit-learn or Pillow is not installed, or nothing is left for one of
            the splits.

    Example:
        >>> train, test = sample_image_pairs(train=32)
        >>> len(train), train.small.shape[1:], len(test), test.large.shape[1:]
        (32, torch.Size([3, 16, 16]), 16, torch.Size([3, 96, 96]))
    """
    if scale < 2 or side < 1 or test_side < 1 or train < 1:
        raise InvalidInputError("scale is at least 2; sides and the number of pieces are above 0")
    if not 0 < held_out < 1:
        raise InvalidInputError(f"held_out lies between 0 and 1, not {held_out}")
    if where not in _WHERE:
        raise unknown_name("part of a photo", where, _WHERE)
    shown, kept = [], []
    for photo in _sample_images():
        width = photo.shape[-1]
        left = round(width * (1 - held_out) * _WHERE[where])
        right = left + round(width * held_out)
        sides = (photo[..., :left], photo[..., right:])
        shown += [_pair(part, scale) for part in sides if part.shape[-1]]
        kept.append(_pair(photo[..., left:right], scale))
    for parts, smallest in ((shown, side), (kept, test_side)):
        if min(min(pair.small.shape[-2:]) for pair in parts) < smallest:
            raise InvalidInputError(f"no part of a photo holds pieces of {smallest} small pixels")
    draws = torch.Generator().manual_seed(seed)
    drawn = [_draw(shown[i % len(shown)], side, draws) for i in range(train)]
    grid = [
        pair.piece(test_side, top, left)
        for pair in kept
        for top in range(0, pair.small.shape[1] - test_side + 1, test_side)
        for left in range(0, pair.small.shape[2] - test_side + 1, test_side)
    ]
    return (
        _stacked(f"photos x{scale}, train, seed {seed}, {side} x {side}", drawn),
        _stacked(f"photos x{scale}, test, {test_side} x {test_side}", grid),
    )


def _sample_images() -> list[Tensor]:
    try:
        from sklearn.datasets import load_sample_images

        found: Any = load_sample_images()
    except ImportError:
        raise InvalidInputError(
            "the photos come with scikit-learn: pip install scikit-learn pillow"
        ) from None
    return [torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in found.images]


class _Pair(NamedTuple):
    """A small image (C, H, W) and the large one that it was made of."""

    small: Tensor
    large: Tensor

    def piece(self, side: int, top: int, left: int) -> _Pair:
        scale = self.large.shape[-1] // self.small.shape[-1]
        return _Pair(
            self.small[:, top : top + side, left : left + side],
            self.large[:, scale * top : scale * (top + side), scale * left : scale * (left + side)],
        )


def _pair(image: Tensor, scale: int) -> _Pair:
    """An image, cut to whole multiples, behind the small one that is made of it."""
    height, width = (length // scale * scale for length in image.shape[-2:])
    large = image[:, :height, :width]
    return _Pair(_eight_bit(bicubic(large[None], 1 / scale)[0]) / 255, large)


def _draw(pair: _Pair, side: int, draws: torch.Generator) -> _Pair:
    """A piece at any position, turned and mirrored by chance."""
    height, width = (length - side + 1 for length in pair.small.shape[-2:])
    top, left, turns, mirrored = (
        int(torch.randint(most, (), generator=draws)) for most in (height, width, 4, 2)
    )
    both = [torch.rot90(part, turns, (1, 2)) for part in pair.piece(side, top, left)]
    return _Pair(*(part.flip(2) if mirrored else part for part in both))


def _stacked(name: str, pairs: list[_Pair]) -> SuperResolutionDataset:
    small, large = (torch.stack(parts) for parts in zip(*pairs))
    return SuperResolutionDataset(name, small, large)


def _eight_bit(pixels: Tensor) -> Tensor:
    """0 to 1 -> whole numbers from 0 to 255, in double precision or what the pixels have."""
    return (pixels * 255).round().clamp(0, 255)
