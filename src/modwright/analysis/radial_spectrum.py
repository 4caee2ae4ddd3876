"""How much power maps have at each distance from the middle of their spectrum.

Unlike the shares of :mod:`modwright.analysis.spectrum` these are sums that can be compared between
errors of several models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = ["radial_spectrum"]

NYQUIST = 0.5  # cycles per pixel


def radial_spectrum(maps: Tensor, bins: int = 16) -> Tensor:
    """Power in rings of frequencies, from no change to the finest along an axis.

    Frequencies beyond, which only the corners of the spectrum hold, count to the last ring. The
    rings sum to the mean of the squares of the pixels (Parseval).

    Args:
        maps: (..., H, W); the mean over all but the last two axes is taken.
        bins: rings of equal width, up to 1/2 cycle per pixel.

    Returns:
        (bins,)

    Raises:
        InvalidInputError: no maps, or no ring.

    Example:
        >>> stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 16, 16)  # the finest there are
        >>> radial_spectrum(stripes, bins=4)
        tensor([0., 0., 0., 1.])
    """
    if maps.dim() < 2 or 0 in maps.shape:
        raise InvalidInputError(f"maps are (..., height, width), not {tuple(maps.shape)}")
    if bins < 1:
        raise InvalidInputError(f"bins is at least 1, not {bins}")
    height, width = maps.shape[-2:]
    spectrum = torch.fft.fft2(maps.reshape(-1, height, width), norm="forward")
    power = spectrum.abs().square().mean(0)
    rows, columns = (
        torch.fft.fftfreq(length, dtype=power.dtype, device=power.device)
        for length in (height, width)
    )
    radius = torch.hypot(rows[:, None], columns[None])
    ring = (radius / NYQUIST * bins).long().clamp(max=bins - 1)
    return power.new_zeros(bins).index_add_(0, ring.flatten(), power.flatten())
