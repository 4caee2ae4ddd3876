"""Pairs for super-resolution and measures of images, against their formulas written out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.tasks.upscaling import (
    SuperResolutionDataset,
    bicubic,
    psnr,
    quality,
    sample_image_pairs,
    ssim,
)


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def naive_resize(row: np.ndarray, length: int) -> np.ndarray:
    """One row: each new place is a mean of the old ones that its kernel reaches."""
    scale = length / len(row)
    wide = max(1 / scale, 1.0)  # the kernel grows where images get smaller
    out = []
    for place in range(length):
        middle = (place + 0.5) / scale - 0.5
        weights = np.array([cubic((i - middle) / wide) for i in range(len(row))])
        out.append((weights * row).sum() / weights.sum())
    return np.array(out)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_bicubic_is_its_formula(scale: float) -> None:
    image = torch.rand(1, 1, 12, 24, dtype=torch.float64)
    found = bicubic(image, scale)[0, 0].numpy()
    rows = np.stack([naive_resize(row, round(24 * scale)) for row in image[0, 0].numpy()])
    expected = np.stack([naive_resize(column, round(12 * scale)) for column in rows.T]).T
    assert np.abs(found - expected).max() <= 1e-6


def codes(image: Tensor) -> Tensor:
    """One whole number for each color of an image."""
    levels = (image * 255).round().long()
    return (levels[0] * 256 + levels[1]).mul(256).add(levels[2]).flatten()


def test_pieces_are_the_same_each_time_and_the_splits_do_not_touch() -> None:
    train, test = sample_image_pairs(train=40)
    again = sample_image_pairs(train=40)
    assert train.small.equal(again[0].small) and test.large.equal(again[1].large)
    other, same = sample_image_pairs(train=40, seed=1)
    assert not other.large.equal(train.large) and same.large.equal(test.large)
    assert train.small.shape == (40, 3, 16, 16) and train.large.shape == (40, 3, 32, 32)
    assert test.small.shape == (16, 3, 48, 48) and test.large.shape == (16, 3, 96, 96)

    from sklearn.datasets import load_sample_images

    china = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1) / 255
    held_out = china[:, :, 224:416]  # the middle 30% of 640 columns
    assert test.large[0].equal(held_out[:, :96, :96])
    assert test.large[1].equal(held_out[:, :96, 96:])
    shown = [china[:, :, :224], china[:, :, 416:]]
    colours = torch.cat([codes(part) for part in shown])
    assert bool(torch.isin(codes(train.large[0]), colours).all())
    assert not bool(torch.isin(codes(test.large[5]), colours).all())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_small_pieces_are_made_of_their_large_ones(scale: int) -> None:
    train, test = sample_image_pairs(scale=scale, side=12, train=16, test_side=24)
    assert train.scale == test.scale == scale
    for pairs in (train, test):
        levels = pairs.small * 255
        assert (levels - levels.round()).abs().max() <= 1e-4  # 8 bits
        # away from its border a piece that is made smaller alone is the same, but for rounding
        again = bicubic(pairs.large, 1 / scale).clamp(0, 1)
        assert (again - pairs.small)[..., 2:-2, 2:-2].abs().max() <= 0.51 / 255


def test_pieces_are_turned_and_mirrored() -> None:
    train, _ = sample_image_pairs(side=40, train=64)
    # sky is brighter than the ground in the first photo, whichever way it is turned
    china = train.large[0::4].mean(1)
    bright = [china[:, :20].mean((1, 2)), china[:, :, :20].mean((1, 2))]
    assert all(0 < int((half > china.mean((1, 2))).sum()) < len(china) for half in bright)


def naive_luma(image: Tensor) -> np.ndarray:
    rounded = np.clip(np.round(image.double().numpy() * 255), 0, 255) / 255
    return 16 + 65.481 * rounded[0] + 128.553 * rounded[1] + 24.966 * rounded[2]


@pytest.mark.parametrize("crop", [0, 2, 5])
def test_psnr_is_its_formula(crop: int) -> None:
    wanted = torch.rand(2, 3, 20, 17)
    found = wanted + 0.1 * torch.randn_like(wanted)  # some lie outside 0 to 1
    values = []
    for one, other in zip(found, wanted):
        gap = naive_luma(one) - naive_luma(other)
        gap = gap[crop : 20 - crop, crop : 17 - crop]
        values.append(10 * math.log10(255**2 / (gap**2).mean()))
    assert psnr(found, wanted, crop) == pytest.approx(sum(values) / 2, abs=1e-9)
    assert psnr(wanted, wanted) == math.inf
    grey = wanted[:, :1]
    gap = (grey.double() * 255).round() - (found[:, :1].double() * 255).round().clamp(0, 255)
    expected = (10 * (255**2 / gap.square().mean((1, 2, 3))).log10()).mean()
    assert psnr(found[:, :1], grey, luma=False) == pytest.approx(float(expected), abs=1e-9)


def naive_ssim(one: np.ndarray, other: np.ndarray) -> float:
    positions = np.arange(11) - 5
    bell = np.exp(-(positions**2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = (part[top : top + 11, left : left + 11] for part in (one, other))
            m, n = (weights * x).sum(), (weights * y).sum()
            s, t = (weights * (x - m) ** 2).sum(), (weights * (y - n) ** 2).sum()
            st = (weights * (x - m) * (y - n)).sum()
            found.append((2 * m * n + c1) * (2 * st + c2) / ((m**2 + n**2 + c1) * (s + t + c2)))
    return float(np.mean(found))


def test_ssim_is_its_formula() -> None:
    wanted = torch.rand(3, 18, 21)
    found = (wanted + 0.05 * torch.randn_like(wanted)).clamp(0, 1)
    one, other = naive_luma(found)[2:-2, 2:-2], naive_luma(wanted)[2:-2, 2:-2]
    assert ssim(found, wanted, 2) == pytest.approx(naive_ssim(one, other), abs=1e-9)
    both = torch.stack((found, wanted))
    again = torch.stack((wanted, wanted))
    assert ssim(both, again, 2) == pytest.approx((naive_ssim(one, other) + 1) / 2, abs=1e-9)
    assert ssim(wanted, wanted) == pytest.approx(1, abs=1e-12)


def test_measures_agree_with_scikit_image_where_it_is_installed() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    wanted = torch.rand(3, 40, 30)
    found = (wanted + 0.1 * torch.randn_like(wanted)).clamp(0, 1)
    one, other = naive_luma(found), naive_luma(wanted)
    expected = metrics.peak_signal_noise_ratio(other, one, data_range=255)
    assert psnr(found, wanted) == pytest.approx(expected, abs=1e-6)
    settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "data_range": 255}
    expected = metrics.structural_similarity(
        one, other, use_sample_covariance=False, win_size=11, **settings
    )
    assert ssim(found, wanted) == pytest.approx(expected, abs=1e-6)


class Doubling(nn.Module):
    """Makes images larger by bicubic interpolation, as a model gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(reconstruction=bicubic(pixel_values, 2) + self.weight)


def test_quality_is_of_all_pairs_without_the_border() -> None:
    _, test = sample_image_pairs(train=4)
    found = quality(Doubling(), test, batch_size=3)
    large = bicubic(test.small, 2)
    assert found.psnr == pytest.approx(psnr(large, test.large, 2), abs=1e-6)
    assert found.ssim == pytest.approx(ssim(large, test.large, 2), abs=1e-6)
    grey = SuperResolutionDataset("grey", test.small[:, :1], test.large[:, :1])
    assert quality(Doubling(), grey).psnr == pytest.approx(
        psnr(large[:, :1], grey.large, 2, luma=False), abs=1e-6
    )


def test_what_cannot_be_measured_is_refused() -> None:
    image = torch.rand(3, 16, 16)
    with pytest.raises(
        InvalidInputError, match=r"of one shape .* not \(3, 16, 16\) and \(3, 16, 15\)"
    ):
        psnr(image, image[..., 1:])
    with pytest.raises(InvalidInputError, match="of one shape"):
        psnr(image[0], image[0])
    with pytest.raises(
        InvalidInputError, match="without 8 pixels at each side nothing is left of 16 x 16"
    ):
        psnr(image, image, 8)
    with pytest.raises(InvalidInputError, match="without -1 pixels"):
        ssim(image, image, -1)
    with pytest.raises(
        InvalidInputError, match="luma is of red, green and blue, not of 1 channels"
    ):
        psnr(image[:1], image[:1])
    with pytest.raises(InvalidInputError, match="finite numbers from 0 to 1"):
        psnr(image * math.nan, image)
    with pytest.raises(InvalidInputError, match="finite numbers from 0 to 1"):
        psnr((image * 255).byte(), (image * 255).byte())
    with pytest.raises(InvalidInputError, match="10 x 10 holds no window of 11 x 11"):
        ssim(image, image, 3)


def test_pairs_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="scale is at least 2"):
        sample_image_pairs(scale=1)
    with pytest.raises(InvalidInputError, match="held_out lies between 0 and 1, not 1"):
        sample_image_pairs(held_out=1)
    with pytest.raises(InvalidInputError, match="unknown part of a photo 'top'"):
        sample_image_pairs(where="top")
    with pytest.raises(InvalidInputError, match="holds pieces of 97 small pixels"):
        sample_image_pairs(test_side=97)
    with pytest.raises(InvalidInputError, match="holds pieces of 113 small pixels"):
        sample_image_pairs(side=113)
    train, _ = sample_image_pairs(train=4)
    assert len(train.take(3)) == 3 and train[1]["labels"].equal(train.large[1])
    with pytest.raises(InvalidInputError, match="has 4 pairs, not 5"):
        train.take(5)
