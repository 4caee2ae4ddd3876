"""Pairs for super-resolution: how they are made smaller, drawn and held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError
from modwright.data.super_resolution import bicubic, sample_image_pairs


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
