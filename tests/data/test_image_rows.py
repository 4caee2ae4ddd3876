"""Images are decoded when their rows are asked for; what is drawn is drawn anew and seeded."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.data import make_data
from modwright.data.image_rows import (
    ImageArrays,
    ImageFileList,
    ImagePreparation,
    ImageRows,
    ImageSplits,
    image_data,
)
from modwright.training.callbacks import EpochCallback

LIST = ["random_resized_crop", "hflip", "rand_augment", {"random_erasing": {"probability": 1.0}}]


def folder(place: Path, counts: Mapping[str, int], size: tuple[int, int] = (20, 16)) -> Path:
    rng = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (place / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
                place / name / f"{i}.png"
            )
    return place


class FakeReader:
    """Makes images of no file, and counts those that are alive."""

    def __init__(self) -> None:
        self.alive, self.most, self.calls = 0, 0, 0

    def __call__(self, path: Path) -> Image.Image:
        self.calls += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        image = Image.new("RGB", (64, 64), (int(path.name) % 256, 0, 0))
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        self.alive -= 1


def held(value: Any, seen: set[int]) -> int:
    """Bytes of everything that is reached from a value."""
    if id(value) in seen or isinstance(value, type | type(sys)):
        return 0
    seen.add(id(value))
    own = sys.getsizeof(value)
    if isinstance(value, torch.Tensor):
        return own + value.untyped_storage().nbytes()
    inside = list(getattr(value, "__dict__", {}).values())
    inside += list(value) if isinstance(value, tuple | list) else []
    inside += list(value.values()) if isinstance(value, dict) else []
    return own + sum(held(one, seen) for one in inside)


def test_fault_B7_memory_does_not_grow_with_the_number_of_files() -> None:
    """Nothing is kept of an image: only the path and the label of each file are, 200 bytes."""
    after = {}
    for count in (100, 10_000):
        reader = FakeReader()
        paths = tuple(str(i) for i in range(count))
        files = ImageFileList(Path(), paths, torch.zeros(count, dtype=torch.long), reader)
        rows = ImageRows(files, ImagePreparation(32))
        assert reader.calls == 0, "nothing is read when a dataset is made"
        before = held(rows, {id(reader)})
        for index in range(0, count, count // 50):
            assert rows[index]["pixel_values"].shape == (3, 32, 32)
        gc.collect()
        assert reader.calls == 50 and reader.most <= 2 and reader.alive == 0
        after[count] = held(rows, {id(reader)})
        assert after[count] == before
    assert (after[10_000] - after[100]) / 9_900 < 200


def test_rows_are_the_middle_of_the_image_normalized(tmp_path: Path) -> None:
    place = folder(tmp_path, {"cat": 3, "dog": 3})
    data = make_data({"images": str(place), "image_size": 8, "mean": [0.5, 0.4, 0.3], "std": 0.5})
    assert data.labels == ("cat", "dog") and data.test is not None
    rows = data.train
    for i in range(len(rows)):
        path = place / rows.source.paths[i]  # type: ignore[attr-defined]
        resized = Image.open(path).resize((8, 10), Image.Resampling.BICUBIC)
        expected = np.asarray(resized)[1:9] / 255
        expected = ((expected - np.array([0.5, 0.4, 0.3])) / 0.5).transpose(2, 0, 1)
        assert np.abs(rows[i]["pixel_values"].numpy() - expected).max() < 1e-6
        assert rows[i]["labels"] == ("cat", "dog").index(path.parent.name)


def test_crop_pct_takes_the_middle() -> None:
    image = Image.new("RGB", (100, 100), "black")
    image.paste("white", (25, 25, 75, 75))
    whole, middle = (
        ImagePreparation(50, crop_pct=c, mean=0.0, std=1.0).pixels(image) for c in (1.0, 0.5)
    )
    assert middle.min() == 1 and 0.2 < whole.mean() < 0.3
    gray = ImagePreparation(10, channels=1, mean=0.0, std=1.0).pixels(image)
    assert gray.shape == (1, 10, 10)


@pytest.mark.parametrize("size", [(40, 40), (60, 33), (31, 80), (9, 12)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_the_image_processor_does_the_same(size: tuple[int, int], crop_pct: float) -> None:
    from transformers import CLIPImageProcessor

    preparation = ImagePreparation(24, crop_pct=crop_pct, mean=(0.5, 0.4, 0.3), std=0.25)
    numbers = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(numbers)
    own = preparation.pixels(image)
    theirs = CLIPImageProcessor(**preparation.processor())(image, return_tensors="pt")
    assert theirs["pixel_values"][0].shape == own.shape == (3, 24, 24)
    assert (theirs["pixel_values"][0] - own).abs().max() * 0.25 * 255 <= 2, "but for rounding"


def test_digits_are_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    given = {"images": "digits", "image_size": 24}
    data, other = make_data(given), make_data({**given, "seed": 1})
    assert (len(data.train), len(data.test or ())) == (1297, 500)
    assert data.digest == make_data(given).digest != other.digest
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    raw: Any = load_digits()
    for index in (0, 7, 1296):
        row = data.train[index]
        whole = torch.tensor(raw.images[order[index]], dtype=torch.float32)[None, None] / 16
        large = torch.nn.functional.interpolate(whole, size=(24, 24), mode="bilinear")[0]
        assert torch.allclose(row["pixel_values"], (large.expand(3, -1, -1) - 0.3) / 0.35)
        assert row["labels"] == raw.target[order[index]]


def test_the_same_seed_gives_the_same_rows_whatever_was_read_before() -> None:
    given = {"images": "digits", "image_size": 12, "augment": LIST}
    one, again, other = (make_data({**given, "seed": s}).train for s in (3, 3, 4))
    for rows in (one, again, other):
        rows.set_epoch(2)  # type: ignore[attr-defined]
    expected = [one[i]["pixel_values"] for i in range(6)]
    assert all(torch.equal(again[i]["pixel_values"], expected[i]) for i in (5, 0, 3))
    one.set_epoch(0)  # type: ignore[attr-defined]
    assert not torch.equal(one[0]["pixel_values"], expected[0])
    one.set_epoch(2)  # type: ignore[attr-defined]
    assert torch.equal(one[0]["pixel_values"], expected[0])
    assert torch.equal(one[-1]["pixel_values"], one[len(one) - 1]["pixel_values"])
    with pytest.raises(IndexError):
        one[len(one)]


def test_batches_are_mixed_by_the_seeds_of_their_rows() -> None:
    given = {"images": "digits", "image_size": 8, "augment": ["mixup"]}
    one, again = make_data(given), make_data(given)
    batches = [d.collate([d.train[i] for i in (4, 9, 2, 7)]) for d in (one, again)]
    assert batches[0].keys() == {"pixel_values", "labels"}
    assert batches[0]["labels"].shape == (4, 10)
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])
    one.train.set_epoch(1)  # type: ignore[attr-defined]
    other = one.collate([one.train[i] for i in (4, 9, 2, 7)])
    assert not torch.equal(other["labels"], batches[0]["labels"])
    assert one.test is not None
    measured = one.collate([one.test[i] for i in range(3)])
    assert measured["labels"].shape == (3,), "what is measured on is not mixed"


@pytest.mark.parametrize("stop", [3, 6])
def test_a_training_that_goes_on_sees_what_it_would_have_seen(tmp_path: Path, stop: int) -> None:
    """Two epochs of transformers' Trainer, stopped within the first or the second."""
    given = {"images": "digits", "image_size": 8, "train": 16, "augment": [*LIST, "mixup"]}
    seen: list[str] = []

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 10)

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            seen.append(sha256_of(pixel_values, labels))
            logits = self.head(pixel_values.flatten(1))
            return {"loss": nn.functional.cross_entropy(logits, labels)}

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = control.should_save = state.global_step == stop
            return control

    def train(resume: str | None, callbacks: list[Any]) -> list[str]:
        seen.clear()
        data = make_data(given)
        arguments = TrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, use_cpu=True,
            report_to=[], disable_tqdm=True, remove_unused_columns=False, save_strategy="no",
            logging_strategy="no",
        )  # fmt: skip
        callbacks = [*callbacks, EpochCallback(data.train)]
        trainer = Trainer(Tiny(), arguments, data.collate, data.train, callbacks=callbacks)  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=resume)
        return list(seen)

    whole = train(None, [])
    assert len(set(whole)) == 8, "the second epoch is not the first again"
    assert train(None, [Stop()]) == whole[:stop]
    assert train(str(tmp_path / f"checkpoint-{stop}"), []) == whole[stop:]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path, {"cat": 3, "dog": 3})
    data = make_data({"images": str(place), "image_size": 8})
    (place / data.train.source.paths[0]).write_bytes(b"\x89PNG broken")  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"\d.png is no image that can be read"):
        data.train[0]


def test_a_digest_changes_with_the_bytes_of_a_file_and_the_preparation(tmp_path: Path) -> None:
    place = folder(tmp_path, {"cat": 3, "dog": 3})
    given = {"images": str(place), "image_size": 8}
    first = make_data(given).digest
    assert make_data({**given, "augment": ["hflip"]}).digest == first
    assert make_data({**given, "crop_pct": 0.9}).digest != first
    with (place / "cat" / "0.png").open("ab") as stream:
        stream.write(b"more")
    assert make_data(given).digest != first


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_size": 0}, r"image_size lies in 1..4096, not 0"),
        ({"channels": 2}, "channels is 1 or 3, not 2"),
        ({"crop_pct": 0}, r"crop_pct lies in \(0, 1\]"),
        ({"mean": [0.5, 0.5]}, "mean has 2 values for 3 channels"),
        ({"std": 0.0}, "std is above 0"),
        ({"augment": ["hflop"]}, "unknown augmentation 'hflop'"),
        ({"augment": "hflip"}, "augment"),
        ({"train": 1797}, "of 1797 digits 1 to 1796"),
    ],
)
def test_what_cannot_be_prepared_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        make_data({"images": "digits", **given})
    assert "\n" not in str(refusal.value)


def test_something_else_is_no_set_of_images() -> None:
    with pytest.raises(InvalidInputError, match="made as ImageSplits, not list"):
        image_data([])
    images = ImageArrays(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]))
    assert image_data(ImageSplits(images, None, ("a",)), image_size=4).test is None
