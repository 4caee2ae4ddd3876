"""Files of MNIST's form, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import Data, idx_files, make_data
from modwright.data.idx_files import read_idx


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


def read(folder: Path, side: int = 32, **options: Any) -> Data:
    return make_data({"images": str(folder), "image_size": side, **options})


CLOTHES = list(idx_files._FASHION)


@pytest.mark.parametrize(("counts", "first"), [(c, n[0]) for c, n in idx_files._KNOWN.items()])
def test_fault_A20_names_of_labels_are_those_of_the_known_sets(
    tmp_path: Path, counts: tuple[int, ...], first: str
) -> None:
    labels = np.repeat(np.arange(10), counts)
    for start, of in (("train", labels), ("t10k", labels[:50])):
        (tmp_path / f"{start}-images-idx3-ubyte").write_bytes(idx(np.zeros((len(of), 1, 1))))
        (tmp_path / f"{start}-labels-idx1-ubyte").write_bytes(idx(of))
    assert read(tmp_path, 1).labels[0] == first == {"0": "0"}.get(first, "t-shirt")


def test_fault_A20_other_sets_need_names(tmp_path: Path) -> None:
    fashion(tmp_path)
    with pytest.raises(
        InvalidInputError, match="neither MNIST nor Fashion-MNIST; name its 6 labels with `c"
    ):
        read(tmp_path)


def test_idx_files_are_read_gzipped_or_not(tmp_path: Path) -> None:
    fashion(tmp_path)
    data = read(tmp_path, channels=1, classes=CLOTHES)
    assert data.train[0]["pixel_values"].shape == (1, 32, 32)
    assert [int(data.train[i]["labels"]) for i in range(6)] == list(range(6))
    raw = read_idx(tmp_path / "train-images-idx3-ubyte.gz")
    assert raw.shape == (6, 28, 28)
    same_size = read(tmp_path, 28, channels=1, classes=CLOTHES).train[2]["pixel_values"]
    assert torch.allclose(same_size[0], (raw[2] / 255 - 0.286) / 0.353, atol=1e-6)
    assert data.labels[9] == "ankle boot"


def test_damaged_and_missing_idx_files_are_named(tmp_path: Path) -> None:
    fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"train-images-idx3-ubyte\.gz is no whole idx file"):
        read(tmp_path, classes=CLOTHES)
    images.unlink()
    with pytest.raises(CheckpointError, match="has no train-images-idx3-ubyte or"):
        read(tmp_path, classes=CLOTHES)
    fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(5)))
    with pytest.raises(InvalidInputError, match="6 images, but 5 labels"):
        read(tmp_path, classes=CLOTHES)
    with pytest.raises(
        InvalidInputError, match="label 5, but 2 names; `classes` names labels 0 to 5"
    ):
        fashion(tmp_path)
        read(tmp_path, classes=["a", "b"])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_idx(tmp_path / "nothing")
