"""PSNR and SSIM are their formulas, and a super-resolution model has those of its images."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data.super_resolution import bicubic, sample_image_pairs
from modwright.metrics.psnr import psnr, ssim
from modwright.metrics.registry import Subject, make_metric


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


class Cubic(nn.Module):
    """Upscales by cubic convolution, and has a weight so that it has a type."""

    main_input_name = "pixel_values"

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.config = SimpleNamespace(upscale=2)
        self.dtype = torch.float32

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(reconstruction=self.gain * bicubic(pixel_values, 2).clamp(0, 1))


@torch.no_grad()
def test_it_is_the_mean_over_the_sample_images() -> None:
    found = make_metric("psnr", {"limit": 6}).measure(Subject(Cubic()))
    _, test = sample_image_pairs(2, train=1)
    made = bicubic(test.small[:6], 2).clamp(0, 1)
    assert found.images == 6
    assert found.value == pytest.approx(psnr(made, test.large[:6], 2), abs=1e-4)
    assert found.ssim == pytest.approx(ssim(made, test.large[:6], 2), abs=1e-5)
    assert found.interval is not None
    assert found.interval["low"] < found.value < found.interval["high"]


@torch.no_grad()
def test_a_folder_of_large_images_is_made_smaller_first(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for index, size in enumerate(((21, 30), (40, 25))):
        pixels = draws.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = make_metric("psnr", {"images": str(tmp_path)}).measure(Subject(Cubic()))
    values = []
    for path in sorted(tmp_path.glob("*.png")):
        raw = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
        large = raw[:, : raw.shape[1] // 2 * 2, : raw.shape[2] // 2 * 2]
        small = (bicubic(large[None], 0.5) * 255).round().clamp(0, 255) / 255
        values.append(psnr(bicubic(small, 2).clamp(0, 1)[0], large, 2))
    assert found.value == pytest.approx(sum(values) / 2, abs=1e-4)
    assert found.interval is None and found.images == 2


def test_what_cannot_be_measured_is_refused_and_what_is_broken_said(
    tiny: Any, tmp_path: Path
) -> None:
    metric = make_metric("psnr", {"limit": 1})
    with pytest.raises(InvalidInputError, match="it needs a super-resolution model"):
        metric.require(Subject(tiny("tiny-llama")))
    with pytest.raises(CheckpointError, match="no such folder"):
        make_metric("psnr", {"images": str(tmp_path / "gone")}).require(Subject(Cubic()))
    with pytest.raises(InvalidInputError, match="holds no images"):
        make_metric("psnr", {"images": str(tmp_path)}).require(Subject(Cubic()))
    assert not metric.measure(Subject(Cubic(math.nan))).finite


def test_images_that_cannot_be_compared_are_refused() -> None:
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
