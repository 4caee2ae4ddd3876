"""Spectra of feature maps: waves of one frequency, the definition, parts of a model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from modwright.analysis import Spectrum, band_energy, map_spectra, relative_log_amplitude
from modwright.analysis.spectrum import frequencies
from modwright.core.errors import InvalidInputError


def wave(rows: int, columns: int, side: int = 16) -> Tensor:
    """A map whose whole energy lies at so many periods down and across."""
    places = torch.arange(side) * 2 * math.pi / side
    return torch.cos(rows * places[:, None] + columns * places[None]).expand(2, 3, side, side)


@pytest.mark.parametrize(
    ("rows", "columns", "band"),
    [(0, 0, 0), (1, 0, 1), (4, 4, 1), (2, 5, 2), (8, 0, 2), (8, 8, 2)],
)
def test_a_wave_lies_in_the_band_of_its_finer_direction(rows: int, columns: int, band: int) -> None:
    shares = band_energy(wave(rows, columns))
    expected = torch.zeros(3, dtype=torch.float64)
    expected[band] = 1
    assert torch.allclose(shares, expected, atol=1e-9)


def test_energies_of_waves_add_up() -> None:
    mixed = 3 + 2 * wave(0, 2) + wave(7, 0)
    # the energy of a mean is its square, of a wave half of it
    assert torch.allclose(band_energy(mixed), torch.tensor([9, 2, 0.5]).double() / 11.5, atol=1e-7)


def test_noise_has_the_share_that_counting_gives() -> None:
    """The null: every frequency holds as much."""
    noise = torch.randn(64, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    high = float((frequencies(8, 12) > 0.5).double().mean())
    assert float(band_energy(noise)[-1]) == pytest.approx(high, rel=0.02)
    steps, found = relative_log_amplitude(noise)
    # for one real number at the mean and complex ones elsewhere: sqrt(pi) / 2 over sqrt(2 / pi)
    assert float(found[steps == 0.5]) == pytest.approx(math.log(math.pi / 2**1.5), abs=0.05)


def test_amplitudes_are_means_over_a_ring() -> None:
    maps = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    steps, found = relative_log_amplitude(maps)
    amplitude, rings = torch.fft.fft2(maps.double()).abs().mean((0, 1)), frequencies(6, 6)
    assert steps.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for step, value in zip(steps, found):
        truth = (amplitude[rings == step].mean() / amplitude[0, 0]).log()
        assert float(value) == pytest.approx(float(truth), abs=1e-9)


def test_a_mean_filter_takes_detail_away_and_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3), nn.AvgPool2d(3, 1, 1)).train()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = map_spectra(model, images, ["0", "2"])
    assert found["2"].high_share < found["0"].high_share / 4
    assert found["0"] == Spectrum.of(images)
    assert model.training and int(model[1].num_batches_tracked) == 0
    assert not any(part._forward_hooks for part in model.modules())
    shown = json.loads(json.dumps(found["2"].to_dict()))
    assert sum(shown["bands"]) == pytest.approx(1) and shown["log_amplitudes"][0] == 0
    assert shown["frequencies"] == [0, 0.25, 0.5, 0.75, 1]


def test_a_map_of_one_place_is_its_mean() -> None:
    only = Spectrum.of(torch.ones(1, 2, 1, 1))
    assert only == Spectrum((0.0,), (0.0,), (1.0, 0.0, 0.0))


def test_what_has_no_spectrum_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"maps are \(B, C, H, W\), not \(2, 3\)"):
        band_energy(torch.ones(2, 3))
    with pytest.raises(InvalidInputError, match="edges of bands must rise"):
        band_energy(torch.ones(1, 1, 2, 2), (0.5, 0.5))
    for nothing in (0.0, math.nan):
        with pytest.raises(InvalidInputError, match="have no spectrum"):
            band_energy(torch.full((1, 1, 2, 2), nothing))
    with pytest.raises(InvalidInputError, match="means are all 0"):
        relative_log_amplitude(torch.zeros(1, 1, 2, 2))
    with pytest.raises(InvalidInputError, match="no part 'middle'"):
        map_spectra(nn.Sequential(nn.Identity()), torch.ones(1, 1, 2, 2), ["middle"])

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(InvalidInputError, match="give no tensor in a pass: unused"):
        map_spectra(Lazy(), torch.ones(1, 1, 2, 2), ["unused"])


def test_fault_A4_what_follows_in_place_does_not_change_what_a_part_gave() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    images = torch.rand(2, 3, 8, 8) - 0.5
    found = map_spectra(nn.Sequential(conv, nn.ReLU(inplace=True)), images, ["0"])["0"]
    with torch.no_grad():
        assert found == Spectrum.of(conv(images))
