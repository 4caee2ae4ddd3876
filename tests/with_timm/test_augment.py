"""Augmentations draw and compute what timm's do: both from the same stream of random numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, mixup, random_erasing, transforms

from modwright.data.augment import Mixup, RandomErasing, RandomResizedCrop
from modwright.data.augment_rand import OPERATIONS, RandAugment

TIMM = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def image(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] * 0.7
    numbers = ramp + rng.integers(0, 70, (height, width, 3))
    return Image.fromarray(numbers.astype(np.uint8))


def test_the_operations_are_those_of_timm() -> None:
    assert sorted(TIMM.values()) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)
    assert list(TIMM) == list(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_an_operation_is_that_of_timm(name: str, interpolation: str) -> None:
    settings = [(9, 0.5), (3, 0.0), (10, 2.0)]
    if name == "posterize":  # at magnitude 10 nothing is kept, which Pillow refuses timm
        settings = [(9, 0.0), (6, 0.5), (3, 0.0)]
    for magnitude, spread in settings:
        hparams: dict[str, Any] = {"img_mean": (128, 128, 128), "magnitude_std": spread}
        if interpolation != "random":
            hparams["interpolation"] = Image.Resampling[interpolation.upper()]
        theirs = auto_augment.AugmentOp(TIMM[name], 0.5, magnitude, hparams)
        own = RandAugment(magnitude, spread, interpolation=interpolation)  # type: ignore[arg-type]
        for seed in range(12):
            random.seed(seed)
            expected = theirs(image(seed=seed))
            found = own.operate(name, image(seed=seed), random.Random(seed))
            assert np.array_equal(np.asarray(found), np.asarray(expected)), (magnitude, seed)


def test_the_defaults_are_those_of_timms_name() -> None:
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    own = RandAugment()
    assert theirs.num_layers == own.num_layers
    for op in theirs.ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (own.prob, own.magnitude, 0.5)
    assert own.magnitude_std == 0.5


@pytest.mark.parametrize("size", [(48, 64), (64, 20), (9, 300)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_a_crop_is_that_of_timm(size: tuple[int, int], scale: tuple[float, float]) -> None:
    theirs = transforms.RandomResizedCropAndInterpolation(24, scale=scale, interpolation="random")
    own = RandomResizedCrop(scale=scale)
    for seed in range(30):
        random.seed(seed)
        expected = np.asarray(theirs(image(*size)))
        found = np.asarray(own(image(*size), 24, random.Random(seed)))
        assert np.array_equal(found, expected), seed


@pytest.mark.parametrize("count", [1, 3])
def test_erased_boxes_are_those_of_timm(count: int) -> None:
    theirs = random_erasing.RandomErasing(0.7, max_count=count, device="cpu")
    own = RandomErasing(0.7, count=count)
    for seed in range(60):
        pixels = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(seed))
        random.seed(seed)
        expected = theirs(pixels.clone())
        assert torch.equal(own(pixels, random.Random(seed)), expected), seed


@pytest.mark.parametrize("mode", ["rand", "pixel"])
def test_noise_stands_where_timm_puts_it(mode: str) -> None:
    theirs = random_erasing.RandomErasing(1.0, mode=mode, device="cpu")
    own = RandomErasing(1.0, mode=mode)  # type: ignore[arg-type]
    for seed in range(20):
        pixels = torch.full((3, 32, 40), 50.0)
        random.seed(seed)
        expected = theirs(pixels.clone()) != 50
        found = own(pixels, random.Random(seed))
        assert torch.equal(found != 50, expected)
        assert found[found != 50].std() < 3


class Drawn:
    """In place of NumPy's generator: what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float, at: list[int]) -> None:
        numbers = iter(at)
        monkeypatch.setattr(np.random, "beta", lambda *given, **more: share)
        monkeypatch.setattr(np.random, "rand", lambda *given: 0.0)
        monkeypatch.setattr(np.random, "randint", lambda *given, **more: np.int64(next(numbers)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_that_of_timm(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    pixels, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 2, 1, 2])
    Drawn(monkeypatch, 0.3, [])
    theirs = mixup.Mixup(0.8, label_smoothing=smoothing, num_classes=3)
    mixed, targets = theirs(pixels.clone(), labels)
    own = Mixup(0.8, label_smoothing=smoothing)
    found, share = own.mix(pixels, 0.3)
    assert torch.allclose(found, mixed, atol=1e-6) and share == 0.3
    assert torch.allclose(own.targets(labels, 3, share), targets, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
@pytest.mark.parametrize("middle", [(0, 0), (7, 3), (15, 11)])
def test_cutmix_is_that_of_timm(
    monkeypatch: pytest.MonkeyPatch, share: float, middle: tuple[int, int]
) -> None:
    pixels, labels = torch.randn(4, 3, 16, 12), torch.tensor([0, 2, 1, 2])
    Drawn(monkeypatch, share, list(middle))
    theirs = mixup.Mixup(0.0, 1.0, num_classes=3, label_smoothing=0.0)
    mixed, targets = theirs(pixels.clone(), labels)

    class Middle(random.Random):
        numbers = iter(middle)

        def randrange(self, *given: Any) -> int:
            return next(self.numbers)

    own = Mixup(0.0, 1.0)
    found, kept = own.cut(pixels, share, Middle())
    assert torch.equal(found, mixed)
    assert torch.allclose(own.targets(labels, 3, kept), targets, atol=1e-6)
