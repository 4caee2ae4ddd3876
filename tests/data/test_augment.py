"""What is drawn for images: the formulas, and that the same seed gives the same bits."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.data.augment import (
    AUGMENTATIONS,
    Mixup,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    VerticalFlip,
    augmentation,
    augmentations_of,
)
from modwright.data.augment_rand import OPERATIONS, RandAugment


def sample(height: int = 24, width: int = 36) -> Image.Image:
    """Smooth in one direction, by chance in the other."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(30, 220, width)[None, :, None] + rng.integers(-20, 20, (height, 1, 3))
    return Image.fromarray(ramp.astype(np.uint8))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


@pytest.fixture
def restored() -> Iterator[None]:
    with registries_restored():
        yield


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_the_same_seed_gives_the_same_bits_and_another_others(name: str) -> None:
    made = AUGMENTATIONS[name]()

    def draws(seed: int) -> list[bytes]:
        found = []
        for i in range(12):
            draw = random.Random(f"{seed} {i}")
            if made.on == "image":
                found.append(made(sample(), 16, draw).tobytes())
            elif made.on == "pixels":
                pixels = torch.linspace(0, 1, 3 * 12 * 12).view(3, 12, 12)
                found.append(made(pixels, draw).numpy().tobytes())
            else:
                batch = {"pixel_values": torch.rand(4, 3, 8, 8, generator=torch.manual_seed(0))}
                batch["labels"] = torch.arange(4)
                changed = made(batch, 4, draw)
                found.append(b"".join(t.numpy().tobytes() for t in changed.values()))
        return found

    state = torch.get_rng_state(), random.getstate()
    assert draws(0) == draws(0) != draws(1)
    if name != "mixup":  # which seeds torch in the test itself
        assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


def test_crops_are_within_their_scale_and_ratio() -> None:
    crop = RandomResizedCrop(scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = [crop.box(90, 60, random.Random(i)) for i in range(300)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 60 - height and 0 <= left <= 90 - width
        assert 0.18 < height * width / 5400 < 0.63 and 0.45 < width / height < 2.2
    areas = [height * width / 5400 for _, _, height, width in boxes]
    assert min(areas) < 0.25 and max(areas) > 0.5
    assert crop(sample(60, 90), 16, random.Random(0)).size == (16, 16)


def test_a_crop_is_the_piece_resized() -> None:
    crop, image = RandomResizedCrop(interpolation="bilinear"), sample()
    top, left, height, width = crop.box(*image.size, random.Random(3))
    numbers = np.asarray(image)[top : top + height, left : left + width]
    expected = Image.fromarray(numbers).resize((16, 16), Image.Resampling.BILINEAR)
    assert same(crop(image, 16, random.Random(3)), expected)


@pytest.mark.parametrize(
    ("width", "height", "box"), [(300, 3, (0, 148, 3, 4)), (3, 300, (148, 0, 4, 3))]
)
def test_where_no_draw_fits_the_middle_is_taken(
    width: int, height: int, box: tuple[int, ...]
) -> None:
    crop = RandomResizedCrop(scale=(0.9, 1.0))
    assert crop.box(width, height, random.Random(0)) == box
    assert crop.box(30, 30, random.Random(0))[2] <= 30


def test_flips_mirror() -> None:
    image, numbers = sample(), np.asarray(sample())
    assert np.array_equal(np.asarray(RandomFlip(1.0)(image, 8, random.Random(0))), numbers[:, ::-1])
    assert np.array_equal(np.asarray(VerticalFlip(1.0)(image, 8, random.Random(0))), numbers[::-1])
    flipped = [RandomFlip()(image, 8, random.Random(i)) is not image for i in range(400)]
    assert 160 < sum(flipped) < 240 and RandomFlip(0.0)(image, 8, random.Random(0)) is image


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_boxes_have_their_area_and_filling(mode: str) -> None:
    erase = RandomErasing(probability=1.0, min_area=0.1, max_area=0.3, mode=mode)  # type: ignore[arg-type]
    for seed in range(60):
        pixels = torch.full((3, 40, 30), 7.0)
        found = erase(pixels, random.Random(seed))
        assert (pixels == 7).all(), "what was given stays as it is"
        lost = found[0] != 7
        rows, columns = lost.any(1).nonzero(), lost.any(0).nonzero()
        height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
        assert lost.sum() == height * width and 0.08 < height * width / 1200 < 0.34
        box = found[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        colors = box.flatten(1).unique(dim=1).shape[1]
        assert colors == (height * width if mode == "pixel" else 1)
        assert mode != "const" or (box == 0).all()
    several = RandomErasing(probability=1.0, count=3)
    assert not torch.equal(several(pixels, random.Random(0)), pixels)
    assert RandomErasing(probability=0.0)(pixels, random.Random(0)) is pixels


def naive_mix(pixels: torch.Tensor, share: float) -> torch.Tensor:
    count = len(pixels)
    return torch.stack(
        [share * pixels[i] + (1 - share) * pixels[count - 1 - i] for i in range(count)]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_its_formula(smoothing: float) -> None:
    batch = {"pixel_values": torch.rand(5, 3, 6, 6), "labels": torch.tensor([0, 1, 2, 1, 0])}
    mixup = Mixup(mixup_alpha=0.8, label_smoothing=smoothing)
    found = mixup(batch, 3, random.Random(4))
    draw = random.Random(4)
    draw.random()
    share = draw.betavariate(0.8, 0.8)
    assert torch.allclose(found["pixel_values"], naive_mix(batch["pixel_values"], share))
    for i, label in enumerate(batch["labels"].tolist()):
        other = int(batch["labels"][4 - i])
        for k in range(3):
            sure = share * (k == label) + (1 - share) * (k == other)
            expected = (1 - smoothing) * sure + smoothing / 3
            assert math.isclose(float(found["labels"][i, k]), expected, abs_tol=1e-6)
    assert torch.allclose(found["labels"].sum(1), torch.ones(5))
    assert batch["labels"].shape == (5,), "what was given stays as it is"


def test_cutmix_labels_by_the_area_that_is_seen() -> None:
    pixels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 12).contiguous()
    cut = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0)
    shares = []
    for seed in range(40):
        found = cut({"pixel_values": pixels, "labels": torch.arange(4)}, 4, random.Random(seed))
        for i in range(4):
            own = (found["pixel_values"][i, 0] == i).float().mean()
            other = (found["pixel_values"][i, 0] == 3 - i).float().mean()
            assert torch.isclose(own + other, torch.tensor(1.0))
            assert torch.isclose(found["labels"][i, i], own, atol=1e-6)
        shares.append(float(own))
    assert min(shares) < 0.6 and max(shares) > 0.95  # large boxes and small ones


def test_mixing_is_drawn_by_the_batch() -> None:
    batch = {"pixel_values": torch.rand(2, 1, 9, 9), "labels": torch.tensor([0, 1])}
    both = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.5)
    kinds = {"none": 0, "cut": 0, "mixed": 0}
    for seed in range(300):
        found = both(batch, 2, random.Random(seed))["pixel_values"]
        kept = (found == batch["pixel_values"]).float().mean()
        moved = (found == batch["pixel_values"].flip(0)).float().mean()
        kinds["none" if kept == 1 else "cut" if kept + moved == 1 else "mixed"] += 1
    assert 120 < kinds["none"] < 190 and 45 < kinds["cut"] < 105 and 45 < kinds["mixed"] < 105


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_does_more_at_a_higher_magnitude(name: str) -> None:
    image = sample()
    numbers = np.asarray(image).astype(float)
    changes = []
    for magnitude in (0.0, 5.0, 10.0):
        rand = RandAugment(magnitude, 0.0, prob=1.0, interpolation="bilinear")
        found = np.asarray(rand.operate(name, image, random.Random(1))).astype(float)
        assert found.shape == numbers.shape
        changes.append(np.abs(found - numbers).mean())
    if OPERATIONS[name].strength is None:
        assert changes[0] == changes[1] == changes[2] > 0
    else:
        assert changes[0] <= changes[1] + 1e-9 and changes[0] < changes[2]
    if OPERATIONS[name].signed:
        assert changes[0] == 0


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_bits_are_kept_as_pillow_keeps_them(bits: int) -> None:
    found = OPERATIONS["posterize"].apply(sample(), bits)
    assert same(found, ImageOps.posterize(sample(), bits))
    assert not np.asarray(OPERATIONS["posterize"].apply(sample(), 0)).any()


def test_signs_of_operations_are_drawn() -> None:
    rand = RandAugment(10, 0.0, prob=1.0, interpolation="bilinear")
    for name, operation in OPERATIONS.items():
        found = {rand.operate(name, sample(), random.Random(i)).tobytes() for i in range(12)}
        assert len(found) == (2 if operation.signed else 1), name


def test_layers_magnitudes_and_probability_are_kept() -> None:
    image = sample()
    assert same(RandAugment(9, prob=0.0)(image, 8, random.Random(0)), image)
    never = [same(RandAugment()(image, 8, random.Random(i)), image) for i in range(200)]
    assert 25 < sum(never) < 80  # two layers, each done in half of the cases
    several = {
        RandAugment(5, 2.0, 1, 1.0).operate("solarize", image, random.Random(i)).tobytes()
        for i in range(9)
    }
    assert len(several) > 2


def test_an_augmentation_from_outside_is_one_class(restored: None) -> None:
    from dataclasses import dataclass

    @augmentation("dark")
    @dataclass(frozen=True)
    class Dark:
        factor: float = 0.5
        on = "pixels"

        def __call__(self, pixels: torch.Tensor, draw: random.Random) -> torch.Tensor:
            return pixels * self.factor

    made = augmentations_of([{"dark": {"factor": 0.25}}])
    assert made and float(made.pixels(torch.ones(1), random.Random(0))) == 0.25


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hflip", "augment is a list, such as"),
        (["flip"], r"unknown augmentation 'flip'.*'vflip'"),
        ([{"hflip": {"q": 1}}], r"unknown option of augment.hflip 'q'"),
        ([{"hflip": 0.5}], "is neither a name nor"),
        ([{"hflip": {"p": "x"}}], "augment.hflip: p: must be a number"),
        ([{"hflip": {"p": 1.5}}], r"p lies in \[0, 1\], not 1.5"),
        ([{"random_resized_crop": {"scale": [0, 1]}}], "scale is two shares"),
        ([{"random_resized_crop": {"ratio": [2, 1]}}], "ratio is two aspect ratios"),
        ([{"random_resized_crop": {"interpolation": "nearest"}}], "interpolation: must be"),
        ([{"rand_augment": {"magnitude": 11}}], r"magnitude lies in 0..10"),
        ([{"random_erasing": {"count": 0}}], "count is at least 1"),
        ([{"random_erasing": {"max_area": 0.01}}], "min_area below max_area"),
        ([{"mixup": {"mixup_alpha": 0.0}}], "one is above 0"),
    ],
)
def test_what_is_no_augmentation_is_refused(given: object, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        augmentations_of(given)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
