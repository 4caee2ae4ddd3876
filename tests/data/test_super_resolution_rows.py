"""Pairs by name and of a folder: pieces of images that were made smaller whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import make_data
from modwright.data.super_resolution import bicubic, sample_image_pairs


def images(place: Path, count: int, size: tuple[int, int] = (41, 53)) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        numbers = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(numbers).save(place / f"{i}.png")
    return place


def test_the_photos_are_those_of_the_function() -> None:
    data = make_data({"super_resolution": "photos", "train": 6, "seed": 3})
    train, test = sample_image_pairs(train=6, seed=3)
    assert torch.equal(data.train[5]["labels"], train.large[5])
    assert data.test is not None and len(data.test) == len(test)


def test_pieces_of_a_folder_are_of_images_made_smaller_whole(tmp_path: Path) -> None:
    place = images(tmp_path, 5)
    data = make_data({"super_resolution": str(place), "scale": 3, "side": 8, "held_out": 0.4})
    assert (len(data.train), len(data.test or ())) == (3, 2)
    rows: Any = data.train
    for index in range(3):
        row = rows[index]
        assert row["pixel_values"].shape == (3, 8, 8) and row["labels"].shape == (3, 24, 24)
        whole = torch.from_numpy(np.asarray(Image.open(rows.paths[index])).copy())
        whole = whole.permute(2, 0, 1).float()[:, :39, :51] / 255
        small = (bicubic(whole[None], 1 / 3)[0] * 255).round().clamp(0, 255) / 255
        found = False
        for turns in range(4):
            for mirrored in (False, True):
                piece = row["pixel_values"].flip(2) if mirrored else row["pixel_values"]
                large = row["labels"].flip(2) if mirrored else row["labels"]
                piece, large = (torch.rot90(one, -turns, (1, 2)) for one in (piece, large))
                spots = small.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4)
                for y, x in (spots == piece).flatten(2).all(2).nonzero().tolist():
                    wanted = whole[:, 3 * y : 3 * y + 24, 3 * x : 3 * x + 24]
                    found = found or torch.equal(large, wanted)
        assert found, "the large piece is the one that the small piece was made of"


def test_what_is_drawn_depends_on_the_epoch_alone(tmp_path: Path) -> None:
    given = {"super_resolution": str(images(tmp_path, 3)), "side": 8}
    one, again = make_data(given), make_data(given)
    rows: Any = one.train
    assert torch.equal(rows[0]["labels"], again.train[0]["labels"]) and one.digest == again.digest
    first = rows[0]["labels"]
    rows.set_epoch(1)
    assert not torch.equal(rows[0]["labels"], first)
    rows.set_epoch(0)
    assert torch.equal(rows[0]["labels"], first)
    measured: Any = one.test
    before = measured[0]["labels"]
    measured.set_epoch(5)
    assert torch.equal(measured[0]["labels"], before)


def test_what_gives_no_pairs_is_refused(tmp_path: Path) -> None:
    place = str(images(tmp_path, 2, (20, 20)))
    with pytest.raises(InvalidInputError, match=r"is 20 x 20; pieces need 64 pixels each way"):
        make_data({"super_resolution": place}).train[0]
    for wrong in ({"scale": 1}, {"side": 0}, {"held_out": 1.0}):
        with pytest.raises(InvalidInputError, match="scale is at least 2"):
            make_data({"super_resolution": place, **wrong})
    with pytest.raises(InvalidInputError, match=r"2 images cannot be split at 0\.9"):
        make_data({"super_resolution": place, "held_out": 0.9})
    with pytest.raises(CheckpointError, match="no such folder"):
        make_data({"super_resolution": f"{place}/0.png"})
