"""Images by name, and folders by their conventions: class folders, splits, metadata, idx files."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import image_datasets, make_data
from modwright.data.image_metadata import METADATA, find_listed_images, has_metadata


def save(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 8), shade).save(path)
    return path


def metadata(place: Path, rows: Sequence[tuple[str, object]], field: str = "label") -> None:
    with place.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", field])
        writer.writerows(rows)


def test_class_folders_and_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train" / "cat" / "notes.xyz").write_text("no image")
    (tmp_path / "__MACOSX").mkdir()
    data = make_data({"images": str(tmp_path), "image_size": 8})
    assert data.labels == ("cat", "dog") and len(data.train) == 6 and len(data.test or ()) == 4
    told = " ".join(data.notes)
    assert "left out __MACOSX" in told and "(1 .xyz): cat/notes.xyz" in told
    assert "learns from train, is measured on val" in told


@pytest.mark.parametrize("name", METADATA)
def test_metadata_names_files_and_labels(tmp_path: Path, name: str) -> None:
    rows = [(f"pics/{i}.png", ("owl", "cat")[i % 2]) for i in range(10)]
    for file, _ in rows:
        save(tmp_path / file)
    save(tmp_path / "pics" / "unlisted.png")
    if name.endswith("csv"):
        metadata(tmp_path / name, rows)
    else:
        mappings = [{"file_name": file, "label": label} for file, label in rows]
        if name.endswith("jsonl"):
            (tmp_path / name).write_text("\n".join(map(json.dumps, mappings)))
        else:
            import pyarrow
            from pyarrow.parquet import write_table

            write_table(pyarrow.Table.from_pylist(mappings), tmp_path / name)
    data = make_data({"images": str(tmp_path), "image_size": 8, "held_out": 0.4})
    assert data.labels == ("cat", "owl") and (len(data.train), len(data.test or ())) == (6, 4)
    for i in range(6):
        file = data.train.source.paths[i]  # type: ignore[attr-defined]
        assert data.labels[int(data.train[i]["labels"])] == dict(rows)[file]
    assert any(
        "1 images are not listed and are left out (pics/unlisted.png)" in n for n in data.notes
    )


@pytest.mark.parametrize("where", ["root", "splits"])
def test_metadata_may_lie_in_the_splits_or_name_them(tmp_path: Path, where: str) -> None:
    listed = {
        "train": [(f"{i}.png", i % 3) for i in range(9)],
        "test": [("a.png", 2), ("b.png", 0)],
    }
    for split, rows in listed.items():
        for file, _ in rows:
            save(tmp_path / split / file)
        if where == "splits":
            metadata(tmp_path / split / "metadata.csv", rows, "kind")
    if where == "root":
        every = [(f"{split}/{file}", k) for split, rows in listed.items() for file, k in rows]
        metadata(tmp_path / "metadata.csv", every, "kind")
    assert has_metadata(tmp_path)
    found = find_listed_images(tmp_path, "kind", 0.2, 0)
    assert found.classes == ("0", "1", "2")
    assert [(name, len(files)) for name, files in found.splits] == [("train", 9), ("test", 2)]
    assert [label for _, label in found.splits[1][1]] == [2, 0]


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    rows = [(f"{i}.png", i % 11) for i in range(33)]
    for file, _ in rows:
        save(tmp_path / file)
    metadata(tmp_path / "metadata.csv", rows)
    assert find_listed_images(tmp_path, "label", 0.3, 0).classes == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("rows", "field", "said"),
    [
        ([("a.png", "x"), ("gone.png", "y")], "label", "row 1 names 'gone.png'; no such file"),
        ([("a.png", "x"), ("../a.png", "y")], "label", "row 1 names '../a.png', outside of it"),
        ([("a.png", "x"), ("a.png", "")], "label", "row 1 has no label"),
        ([("a.png", "x")], "kind", r"unknown column of .*metadata.csv 'label'; .*file_name, kind"),
        ([("a.png", "x"), ("a.png", "x")], "label", "the labels are x; classes are two or more"),
        ([], "label", "lists no image"),
    ],
)
def test_metadata_that_does_not_go_with_the_files_is_refused(
    tmp_path: Path, rows: list[tuple[str, str]], field: str, said: str
) -> None:
    save(tmp_path / "a.png")
    metadata(tmp_path / "metadata.csv", rows, field)
    with pytest.raises(InvalidInputError, match=said) as refusal:
        find_listed_images(tmp_path, "label", 0.2, 0)
    assert "\n" not in str(refusal.value)


def test_splits_of_metadata_have_the_classes_to_learn_from(tmp_path: Path) -> None:
    for split, kinds in (("train", "xy"), ("val", "xz")):
        for kind in kinds:
            save(tmp_path / split / f"{kind}.png")
        metadata(tmp_path / split / "metadata.csv", [(f"{kind}.png", kind) for kind in kinds])
    with pytest.raises(InvalidInputError, match="val has the class 'z', which train has not"):
        find_listed_images(tmp_path, "label", 0.2, 0)
    (tmp_path / "val" / "metadata.csv").unlink()
    with pytest.raises(InvalidInputError, match=r"val has no metadata\.csv, and others have"):
        find_listed_images(tmp_path, "label", 0.2, 0)


def test_idx_files_are_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start, count in (("train", 6), ("t10k", 2)):
        images = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2)
        for name, numbers in (("images-idx3", images), ("labels-idx1", np.arange(count) % 2)):
            head = struct.pack(f">HBB{numbers.ndim}I", 0, 8, numbers.ndim, *numbers.shape)
            packed = gzip.compress(head + numbers.astype(np.uint8).tobytes())
            (tmp_path / f"{start}-{name}-ubyte.gz").write_bytes(packed)
    given = {"images": str(tmp_path), "image_size": 2, "classes": ["even", "odd"]}
    data = make_data({**given, "mean": 0.0, "std": 1.0})
    assert data.labels == ("even", "odd") and (len(data.train), len(data.test or ())) == (6, 2)
    assert data.train[1]["pixel_values"][0].mul(255).round().flatten().tolist() == [4, 5, 6, 7]
    monkeypatch.setattr(image_datasets, "_FASHION_MNIST", str(tmp_path / "gone"))
    with pytest.raises(InvalidInputError, match="apt install dataset-fashion-mnist"):
        make_data({"images": "fashion-mnist"})
    monkeypatch.setattr(image_datasets, "_FASHION_MNIST", str(tmp_path))
    with pytest.raises(InvalidInputError, match="neither MNIST nor Fashion-MNIST"):
        make_data({"images": "fashion-mnist"})


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a" / "0.png")
    with pytest.raises(CheckpointError, match="no such folder"):
        make_data({"images": str(file)})
    with pytest.raises(InvalidInputError, match="has 1 folders of images: classes are 2 or more"):
        make_data({"images": str(tmp_path)})
    with pytest.raises(
        InvalidInputError, match=r"unknown images dataset 'nowhere'.*a folder of images"
    ):
        make_data({"images": "nowhere"})
    with pytest.raises(InvalidInputError, match="names the labels of idx files alone"):
        make_data({"images": str(tmp_path), "classes": ["a"]})
