"""Images: splits that repeat, idx files whole and damaged, folders of classes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import idx_files
from modwright.data.idx_files import read_idx
from modwright.data.images import digits, folder_pictures, idx_pictures


def idx(numbers: np.ndarray) -> bytes:
    """Bytes of an idx file of unsigned bytes."""
    head = struct.pack(">HBB", 0, 8, numbers.ndim) + struct.pack(
        f">{numbers.ndim}I", *numbers.shape
    )
    return head + numbers.astype("u1").tobytes()


def fashion(folder: Path, count: int = 6) -> None:
    draws = np.random.default_rng(0)
    for start in ("train", "t10k"):
        images = draws.integers(0, 256, (count, 28, 28))
        (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{start}-labels-idx1-ubyte").write_bytes(idx(np.arange(count)))


CLOTHES = tuple(idx_files._FASHION)


@pytest.mark.parametrize(("counts", "first"), [(c, n[0]) for c, n in idx_files._KNOWN.items()])
def test_fault_A20_names_of_labels_are_those_of_the_known_sets(
    tmp_path: Path, counts: tuple[int, ...], first: str
) -> None:
    labels = np.repeat(np.arange(10), counts)
    for start, of in (("train", labels), ("t10k", labels[:50])):
        (tmp_path / f"{start}-images-idx3-ubyte").write_bytes(idx(np.zeros((len(of), 1, 1))))
        (tmp_path / f"{start}-labels-idx1-ubyte").write_bytes(idx(of))
    assert idx_pictures(tmp_path, side=1)[1].classes[0] == first == {"0": "0"}.get(first, "t-shirt")


def test_fault_A20_other_sets_need_names(tmp_path: Path) -> None:
    fashion(tmp_path)
    with pytest.raises(
        InvalidInputError, match="neither MNIST nor Fashion-MNIST; name its 6 labels with `c"
    ):
        idx_pictures(tmp_path)


def test_digits_are_split_once_and_for_all() -> None:
    train, test = digits(side=32)
    assert (len(train), len(test)) == (1297, 500)
    assert train.pixels.shape == (1297, 3, 32, 32)
    again = digits(side=32)[0]
    assert again.pixels.equal(train.pixels) and again.labels.equal(train.labels)
    assert not digits(side=32, seed=1)[0].labels.equal(train.labels)
    assert sorted(train.labels.unique().tolist()) == list(range(10))
    assert torch.allclose(train.pixels.min(), torch.tensor(-0.3 / 0.35), atol=1e-5)
    with pytest.raises(InvalidInputError, match="1 to 1796 can be for training, not 1797"):
        digits(train=1797)
    with pytest.raises(InvalidInputError, match="has 500 images, not 501"):
        test.take(501)


def test_idx_files_are_read_gzipped_or_not(tmp_path: Path) -> None:
    fashion(tmp_path)
    train, test = idx_pictures(tmp_path, side=32, channels=1, classes=CLOTHES)
    assert train.pixels.shape == (6, 1, 32, 32) and train.labels.tolist() == list(range(6))
    raw = read_idx(tmp_path / "train-images-idx3-ubyte.gz")
    assert raw.shape == (6, 28, 28)
    same_size = idx_pictures(tmp_path, side=28, channels=1, classes=CLOTHES)[0]
    assert torch.allclose(same_size.pixels[:, 0], (raw / 255 - 0.286) / 0.353, atol=1e-6)
    assert test.classes[9] == "ankle boot"


def test_damaged_and_missing_idx_files_are_named(tmp_path: Path) -> None:
    fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"train-images-idx3-ubyte\.gz is no whole idx file"):
        idx_pictures(tmp_path, classes=CLOTHES)
    images.unlink()
    with pytest.raises(CheckpointError, match="has no train-images-idx3-ubyte or"):
        idx_pictures(tmp_path, classes=CLOTHES)
    fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(5)))
    with pytest.raises(InvalidInputError, match="6 images, but 5 labels"):
        idx_pictures(tmp_path, classes=CLOTHES)
    with pytest.raises(
        InvalidInputError, match="label 5, but 2 names; `classes` names labels 0 to 5"
    ):
        fashion(tmp_path)
        idx_pictures(tmp_path, classes=("a", "b"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_idx(tmp_path / "nothing")


def test_folders_are_classes(tmp_path: Path) -> None:
    from PIL import Image

    for name, shade in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for n in range(5):
            Image.new("L", (40 + n, 30), shade).save(tmp_path / name / f"{n}.png")
    train, test = folder_pictures(tmp_path, side=16, test=0.2)
    assert (len(train), len(test)) == (8, 2) and train.classes == ("dark", "light")
    for pixels, label in zip(train.pixels, train.labels):
        assert (pixels.mean() > 0) == bool(label)
    (tmp_path / "dark" / "0.png").write_bytes(b"no image")
    with pytest.raises(CheckpointError, match=r"0\.png is no image"):
        folder_pictures(tmp_path)
    with pytest.raises(InvalidInputError, match="has 0 folders of images"):
        folder_pictures(tmp_path / "dark")
