"""How near images (B, C, H, W) from 0 to 1 come to those that they should be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.data.super_resolution import SuperResolutionDataset

__all__ = ["Quality", "psnr", "quality", "ssim"]

# Luma of BT.601 in studio range, for red, green and blue from 0 to 1.
_LUMA, _BLACK = (65.481, 128.553, 24.966), 16.0
_WINDOW, _SIGMA = 11, 1.5  # of SSIM


def _eight_bit(pixels: Tensor) -> Tensor:
    """0 to 1 -> whole numbers from 0 to 255, in double precision or what the pixels have."""
    return (pixels * 255).round().clamp(0, 255)


def _comparable(found: Tensor, wanted: Tensor, crop: int, luma: bool) -> tuple[Tensor, Tensor]:
    """Both as (B, C, H, W) from 0 to 255, without their border; C is 1 for luma."""
    if found.shape != wanted.shape or found.dim() not in (3, 4):
        raise InvalidInputError(
            "two images of one shape ([batch,] channels, height, width) are compared, "
            f"not {tuple(found.shape)} and {tuple(wanted.shape)}"
        )
    height, width = found.shape[-2:]
    if crop < 0 or min(height, width) <= 2 * crop:
        raise InvalidInputError(
            f"without {crop} pixels at each side nothing is left of {height} x {width}"
        )
    if luma and found.shape[-3] != 3:
        raise InvalidInputError(
            f"luma is of red, green and blue, not of {found.shape[-3]} channels"
        )
    both = []
    for image in (found, wanted):
        if not (image.is_floating_point() and bool(image.isfinite().all())):
            raise InvalidInputError("pixels are finite numbers from 0 to 1")
        rounded = _eight_bit(image.double()).reshape(-1, *image.shape[-3:])
        rounded = rounded[..., crop : height - crop, crop : width - crop]
        if luma:
            weights = rounded.new_tensor(_LUMA).view(1, 3, 1, 1)
            rounded = (rounded / 255 * weights).sum(1, keepdim=True) + _BLACK
        both.append(rounded)
    return both[0], both[1]


def psnr(found: Tensor, wanted: Tensor, crop: int = 0, luma: bool = True) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over images; infinite for equal ones.

    Args:
        found, wanted: (C, H, W) or (B, C, H, W) from 0 to 1; they are rounded to 8 bits first.
        crop: pixels that are left out at each side; by custom as many as the scale.
        luma: compares the Y of BT.601 (16 to 235) instead of all channels.

    Raises:
        InvalidInputError: images that cannot be compared.

    Example:
        >>> round(psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.2)), 2)
        15.3
    """
    one, other = _comparable(found, wanted, crop, luma)
    errors = (one - other).square().mean((1, 2, 3)).tolist()
    return sum(10 * math.log10(255**2 / e) if e else math.inf for e in errors) / len(errors)


def ssim(found: Tensor, wanted: Tensor, crop: int = 0, luma: bool = True) -> float:
    """Structural similarity, the mean over images, channels and positions; 1 for equal ones.

    Means and spreads are of windows of 11 x 11 within the image, weighted by a Gaussian of 1.5
    pixels (doi 10.1109/TIP.2003.819861). Arguments are those of :func:`psnr`.

    Raises:
        InvalidInputError: images that cannot be compared, or are smaller than a window.

    Example:
        >>> same = torch.rand(3, 16, 16)
        >>> round(ssim(same, same), 6)
        1.0
    """
    one, other = _comparable(found, wanted, crop, luma)
    if min(one.shape[-2:]) < _WINDOW:
        raise InvalidInputError(
            f"an image of {one.shape[-2]} x {one.shape[-1]} holds no window of 11 x 11"
        )
    positions = torch.arange(_WINDOW, dtype=one.dtype) - _WINDOW // 2
    bell = (-positions.square() / (2 * _SIGMA**2)).exp()
    bell = bell / bell.sum()

    def mean(maps: Tensor) -> Tensor:
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        return F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    m, n = mean(one), mean(other)
    m2, n2, mn = m * m, n * n, m * n
    s2, t2, st = mean(one * one) - m2, mean(other * other) - n2, mean(one * other) - mn
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mn + c1) * (2 * st + c2) / ((m2 + n2 + c1) * (s2 + t2 + c2))
    return float(similar.mean())


@dataclass(frozen=True)
class Quality:
    """How near large images come to those they should be, by :func:`psnr` and :func:`ssim`."""

    psnr: float
    ssim: float


@torch.no_grad()
def quality(model: Any, pairs: SuperResolutionDataset, batch_size: int = 8) -> Quality:
    """Of a model's images, on luma and without a border of as many pixels as the scale.

    The model takes ``pixel_values`` and gives a ``reconstruction``, in the mode that it is in.
    """
    device, batches = next(model.parameters()).device, pairs.small.split(batch_size)
    made = [model(pixel_values=small.to(device)).reconstruction.cpu() for small in batches]
    large = torch.cat(made)
    crop, luma = pairs.scale, pairs.large.shape[1] == 3
    return Quality(psnr(large, pairs.large, crop, luma), ssim(large, pairs.large, crop, luma))
