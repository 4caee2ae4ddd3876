"""Which spatial frequencies a model's feature maps hold.

The log amplitude beside that of frequency zero is the measure of arXiv 2202.06709. A frequency
stands for the finer one of its two directions, as a share of the highest that a map can hold: 0 is
the mean of a map, 1 is what changes from one position to the next.

Axes: B images, C channels, H height, W width, K frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode

__all__ = ["Spectrum", "band_energy", "frequencies", "map_spectra", "radial_spectrum"]
__all__ += ["relative_log_amplitude"]

MEAN_AND_HALVES = (0.0, 0.5)


@dataclass(frozen=True)
class Spectrum:
    """What the maps of one part hold, over all images and channels.

    Attributes:
        frequencies: from 0 to 1, as many as the maps have.
        log_amplitudes: natural logarithm of the mean amplitude of each, beside frequency 0.
        bands: shares of the energy in the mean, in the lower half of the frequencies, and in the
            upper half; they add up to 1.
    """

    frequencies: tuple[float, ...]
    log_amplitudes: tuple[float, ...]
    bands: tuple[float, ...]

    @property
    def high_share(self) -> float:
        """The upper half's share of the energy."""
        return self.bands[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, features: Tensor) -> Spectrum:
        """Of maps (B, C, H, W)."""
        steps, amplitudes = relative_log_amplitude(features)
        bands = band_energy(features, MEAN_AND_HALVES)
        return cls(tuple(steps.tolist()), tuple(amplitudes.tolist()), tuple(bands.tolist()))


def frequencies(height: int, width: int) -> Tensor:
    """(H, W) from 0 to 1: the frequency of every position of ``torch.fft.fft2`` of a map.

    Example:
        >>> frequencies(4, 4)[0].tolist(), float(frequencies(4, 4)[1, 2])
        ([0.0, 0.5, 1.0, 0.5], 1.0)
    """
    rows, columns = (2 * torch.fft.fftfreq(side).abs() for side in (height, width))
    return torch.maximum(rows[:, None], columns[None])


def band_energy(features: Tensor, edges: Sequence[float] = MEAN_AND_HALVES) -> Tensor:
    """Shares of the energy of maps (B, C, H, W) in bands of frequencies; they add up to 1.

    Args:
        edges: the highest frequency of each band but the last, rising. ``(0, 0.5)`` gives the mean
            of a map, its lower and its upper half.

    Raises:
        InvalidInputError: edges that do not rise, or features that are no maps or hold nothing.

    Example:
        >>> stripes = torch.tensor([1.0, -1.0]).repeat(4)
        >>> band_energy(stripes.expand(1, 1, 8, 8) + 1).tolist()
        [0.5, 0.0, 0.5]
    """
    if list(edges) != sorted(set(edges)):
        raise InvalidInputError(f"edges of bands must rise: {list(edges)}")
    energy = _transformed(features).abs().square().sum((0, 1))
    if not energy.sum() > 0:
        raise InvalidInputError("maps of zeros, or of what is no number, have no spectrum")
    rings = frequencies(*energy.shape).to(energy.device)
    band = torch.bucketize(rings, torch.tensor(edges, device=energy.device))
    shares = energy.new_zeros(len(edges) + 1).index_add_(0, band.flatten(), energy.flatten())
    return (shares / energy.sum()).cpu()


def relative_log_amplitude(features: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies (K,) of maps, and the log of the mean amplitude of each beside frequency 0's.

    Raises:
        InvalidInputError: features that are no maps, or a mean of exactly 0.

    Example:
        >>> steps, found = relative_log_amplitude(torch.ones(1, 1, 4, 4) + torch.eye(4))
        >>> steps.tolist(), [round(x, 2) for x in found.tolist()]
        ([0.0, 0.5, 1.0], [0.0, -3.0, -3.56])
    """
    amplitude = _transformed(features).abs().mean((0, 1))
    if not amplitude[0, 0] > 0:
        raise InvalidInputError("maps whose means are all 0 have nothing to set amplitudes beside")
    rings = frequencies(*amplitude.shape).to(amplitude.device)
    steps, at = rings.unique(return_inverse=True)
    sums = amplitude.new_zeros(len(steps)).index_add_(0, at.flatten(), amplitude.flatten())
    means = sums / at.flatten().bincount()
    return steps.cpu(), (means.log() - math.log(means[0])).cpu()


def _transformed(features: Tensor) -> Tensor:
    if features.dim() != 4:
        raise InvalidInputError(f"maps are (B, C, H, W), not {tuple(features.shape)}")
    return torch.fft.fft2(features.double())


def map_spectra(model: nn.Module, images: Tensor, parts: Sequence[str]) -> dict[str, Spectrum]:
    """Spectra of what parts of a model give, in one pass over images (B, C, H, W) in eval mode.

    Args:
        parts: names as in ``model.named_modules()``; each gives maps.

    Raises:
        InvalidInputError: a name that the model does not have, a part that did not run, or no maps.

    Example:
        >>> smooth = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1))
        >>> found = map_spectra(smooth, torch.rand(2, 3, 8, 8) - 0.5, ["0", "1"])
        >>> found["1"].high_share < found["0"].high_share < 0.5
        True
    """
    known = dict(model.named_modules())
    for name in parts:
        if name not in known:
            raise InvalidInputError(f"the model has no part {name!r}")
    hook_points = {name: HookPoint(known[name], "output") for name in parts}
    # A copy: what follows a part may work in place.
    with capture(hook_points, copy=True) as kept, eval_mode(model), torch.no_grad():
        model(images)
    if silent := [name for name in parts if name not in kept]:
        raise InvalidInputError(f"parts that give no tensor in a pass: {', '.join(silent)}")
    return {name: Spectrum.of(kept[name]) for name in parts}


def radial_spectrum(maps: Tensor, bins: int = 16) -> Tensor:
    """Power (bins,) of maps (..., H, W) in rings of frequencies of equal width.

    Unlike shares these are sums, so errors of several models can be compared. Rings go up to 1/2
    cycle per pixel, the finest along an axis; what lies beyond, in the corners of the spectrum,
    counts to the last one. They sum to the mean of the squares of the pixels (Parseval).

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
    ring = (radius / 0.5 * bins).long().clamp(max=bins - 1)
    return power.new_zeros(bins).index_add_(0, ring.flatten(), power.flatten())
