"""Power over frequencies: against the sum over every frequency, and against Parseval."""

from __future__ import annotations

import math

import pytest
import torch

from modwright.analysis import radial_spectrum
from modwright.core.errors import InvalidInputError


def waves(height: int, width: int, down: int, across: int) -> torch.Tensor:
    """A wave with whole numbers of periods along both sides; its mean square is 1/2."""
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    return (2 * math.pi * (down * rows + across * columns)).cos()


@pytest.mark.parametrize(("down", "across"), [(0, 1), (3, 0), (4, 5), (0, 7), (8, 8)])
def test_a_wave_is_in_its_ring(down: int, across: int) -> None:
    maps = waves(20, 24, down, across).expand(2, 3, 20, 24)
    found = radial_spectrum(maps, bins=5)
    frequency = math.hypot(down / 20, across / 24)
    expected = torch.zeros(5)
    expected[min(int(frequency / 0.5 * 5), 4)] = 0.5
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (2, 3, 16, 9)])
def test_rings_sum_to_the_mean_square(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, dtype=torch.float64)
    square = float(maps.square().mean())
    assert float(radial_spectrum(maps, bins=6).sum()) == pytest.approx(square)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"not \(3,\)"):
        radial_spectrum(torch.zeros(3))
    with pytest.raises(InvalidInputError, match=r"not \(0, 3\)"):
        radial_spectrum(torch.zeros(0, 3))
    with pytest.raises(InvalidInputError, match="bins is at least 1, not 0"):
        radial_spectrum(torch.zeros(3, 3), bins=0)
