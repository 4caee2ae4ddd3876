"""PSNR of a super-resolution model equals that of its images."""

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
from modwright.metrics.registry import Subject, make_metric
from modwright.tasks.upscaling import bicubic, psnr, sample_image_pairs, ssim


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
