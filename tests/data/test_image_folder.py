"""Folders of images: classes, splits, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from labeled_images import images as decoded
from labeled_images import pixels
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import make_data
from modwright.data.image_files import find_images


def images(folder: Path, counts: Mapping[str, int], suffix: str = ".png") -> Path:
    """A folder with gray images, darker in the first class than in the second."""
    for shade, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / name / f"{index}{suffix}"
            image = Image.new("L", (9, 8), 40 * shade)
            image.save(path, None if suffix else "PNG")
    return folder


@pytest.mark.parametrize(
    ("learned", "measured"),
    [("train", "val"), ("train", "validation"), ("Train", "Valid"), ("training", "test")],
)
def test_fault_A9_folders_of_splits_are_splits(tmp_path: Path, learned: str, measured: str) -> None:
    images(tmp_path / learned, {"cat": 4, "dog": 3, "owl": 2})
    images(tmp_path / measured, {"dog": 2, "owl": 1})
    data: Any = decoded(str(tmp_path), 8)
    assert any(f"learns from {learned}, is measured on {measured}" in n for n in data.notes)
    assert data.labels == ("cat", "dog", "owl")
    assert Counter(data.train.tensors["labels"].tolist()) == {0: 4, 1: 3, 2: 2}
    assert data.test.tensors["labels"].tolist() == [1, 1, 2]


def test_fault_A9_a_third_split_is_not_used_and_said(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        images(tmp_path / split, {"cat": count, "dog": count})
    found = find_images(tmp_path, 0.2, 0)
    assert [(name, len(files)) for name, files in found.splits] == [("train", 6), ("val", 4)]
    assert any("test not used" in note for note in found.notes)


def test_fault_A9_a_lone_train_folder_is_divided(tmp_path: Path) -> None:
    images(tmp_path / "train", {"cat": 5, "dog": 5})
    found = find_images(tmp_path, 0.2, 0)
    assert found.classes == ("cat", "dog") and [len(f) for _, f in found.splits] == [8, 2]


def test_fault_A9_splits_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    images(tmp_path / "train", {"cat": 2, "dog": 2})
    images(tmp_path / "val", {"cat": 1, "wolf": 1})
    with pytest.raises(InvalidInputError, match="val has the class 'wolf', which train has not"):
        find_images(tmp_path, 0.2, 0)
    images(tmp_path / "flat", {"train": 3, "val": 2})
    with pytest.raises(InvalidInputError, match="train has 0 folders of images"):
        find_images(tmp_path / "flat", 0.2, 0)
    images(tmp_path / "odd" / "val", {"cat": 1})
    images(tmp_path / "odd" / "test", {"cat": 1})
    with pytest.raises(InvalidInputError, match="has val, test, but no folder train"):
        find_images(tmp_path / "odd", 0.2, 0)
    # A class may be called like a split where nothing else says that it is one
    images(tmp_path / "vehicles", {"bus": 2, "train": 2})
    assert find_images(tmp_path / "vehicles", 0.5, 0).classes == ("bus", "train")


def test_fault_A9_folders_of_the_system_are_no_classes(tmp_path: Path) -> None:
    images(tmp_path, {"cat": 3, "dog": 3})
    strange = {".ipynb_checkpoints": 1, "__MACOSX": 1, ".git": 1}
    images(tmp_path, strange)
    images(tmp_path / "cat", strange)
    (tmp_path / "cat" / "._0.png").write_bytes(b"of the system")
    found = find_images(tmp_path, 0.4, 0)
    assert found.classes == ("cat", "dog") and sum(len(f) for _, f in found.splits) == 6
    assert any("left out .git, .ipynb_checkpoints, __MACOSX" in note for note in found.notes)
    assert any(note.startswith(f"{tmp_path}: 4 files") for note in found.notes)


def test_fault_A10_images_are_known_by_their_content(tmp_path: Path) -> None:
    for suffix in (".tif", ".tiff", ".webp", ".avif", ".ppm", ".JPG", "", ".scan"):
        kind = {"": "PNG", ".scan": "TIFF"}.get(suffix)
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            image = Image.new("L", (9, 8), 7)
            image.save(tmp_path / name / f"image{suffix}", kind)
    found = find_images(tmp_path, 0.25, 0)
    assert sum(len(files) for _, files in found.splits) == 16 and not found.notes


def test_fault_A10_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    images(tmp_path, {"cat": 2, "dog": 2})
    for name in ("a.heic", "b.heic", "labels.csv", "README"):
        (tmp_path / "dog" / name).write_bytes(b"something else")
    images(tmp_path, {"": 1}, ".jpg")
    said = "\n".join(make_data({"images": str(tmp_path), "held_out": 0.5}).notes)
    assert "4 files that are no readable images" in said
    assert "(1 .csv, 2 .heic, 1 no suffix)" in said
    assert "dog/README, dog/a.heic, dog/b.heic and 1 more" in said
    assert "1 images in no folder of a class (0.jpg)" in said
    for file in (tmp_path / "dog").glob("*.png"):
        file.unlink()
    with pytest.raises(
        InvalidInputError, match=r"'dog' holds no readable image; 4 files .* 2 \.heic"
    ):
        find_images(tmp_path, 0.5, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fault_A21_every_class_has_its_share(tmp_path: Path, seed: int) -> None:
    images(tmp_path, {"bird": 40, "cat": 1, "dog": 20, "eel": 2})
    found = find_images(tmp_path, 0.2, seed)
    (_, learned), (_, measured) = found.splits
    assert Counter(label for _, label in learned) == {0: 32, 1: 1, 2: 16, 3: 1}
    assert Counter(label for _, label in measured) == {0: 8, 2: 4, 3: 1}
    assert found.notes == (f"{tmp_path}: one image only, so none to measure on: cat",)
    assert find_images(tmp_path, 0.2, seed) == found
    assert find_images(tmp_path, 0.2, seed + 1).splits != found.splits
    first = [label for _, label in learned[:10]]
    assert len(set(first)) > 1  # classes are mixed


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_images(tmp_path / "gone", 0.2, 0)
    images(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(InvalidInputError, match=r"2 images cannot be split at 0\.2"):
        find_images(tmp_path, 0.2, 0)
    images(tmp_path, {"cat": 4, "dog": 4})
    with pytest.raises(InvalidInputError, match=r"8 images cannot be split at 1\.5"):
        find_images(tmp_path, 1.5, 0)
    (_, learned), (_, measured) = find_images(tmp_path, 1, 0).splits
    assert not learned and measured == sorted(measured) and len(measured) == 8


def test_images_of_a_folder_are_scaled_and_upright(tmp_path: Path) -> None:
    """What the folder gives is what the one reader reads."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the top is stored at the left
    stored = Image.new("RGB", (16, 16), (0, 0, 250))
    stored.paste((250, 0, 0), (0, 0, 8, 16))
    for index in range(2):
        stored.save(tmp_path / "cat" / f"{index}.jpg", exif=exif, quality=95)
        ramp = (torch.arange(256).view(16, 16) * 257).numpy().astype("uint16")
        Image.fromarray(ramp).save(tmp_path / "dog" / f"{index}.png")
    train: Any = decoded(str(tmp_path), 16).train
    found = pixels(train) * 0.225 + 0.45
    cat, dog = (found[train.tensors["labels"] == label][0] for label in (0, 1))
    assert (cat[:, 4, 8] - torch.tensor([0.98, 0, 0])).abs().max() < 0.05
    assert (cat[:, 12, 8] - torch.tensor([0, 0, 0.98])).abs().max() < 0.05
    assert (dog[0].flatten() - torch.arange(256) / 255).abs().max() < 1e-6
