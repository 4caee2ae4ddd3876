"""Of the checkpoints of a training the newest whole one is taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from labeled_images import noise
from modwright.data import Data
from modwright.models import create_model
from modwright.training import Settings, fit
from modwright.training.checkpoints import newest_checkpoint, remove_incomplete

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
FILES += ("trainer_state.json", "mean_weights.safetensors")
SETTINGS = Settings(
    epochs=2,
    batch_size=4,
    average=0.5,
    more={"save_strategy": "steps", "save_steps": 2},
)


def made() -> tuple[Any, Data]:
    torch.manual_seed(0)
    model = create_model("poolformer_s12", num_classes=2, depths=[1], hidden_sizes=[8])
    pixels = torch.randn(8, 3, 32, 32)
    return model, noise(pixels, torch.arange(8) % 2, ("a", "b"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A training with checkpoints at steps 2 and 4, and the weights that came of it."""
    folder = tmp_path_factory.mktemp("training")
    model, images = made()
    fit(model, images, None, SETTINGS, output=folder)
    return folder, model.state_dict()


@pytest.mark.parametrize("empty", [False, True], ids=["truncated", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_fault_B22_the_older_whole_checkpoint_is_taken(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]], name: str, empty: bool
) -> None:
    folder = tmp_path / "training"
    shutil.copytree(trained[0], folder)
    file = folder / "checkpoint-4" / name
    whole = file.read_bytes()
    file.write_bytes(b"" if empty else whole[: len(whole) // 2])
    found = newest_checkpoint(folder)
    assert found is not None and found.name == "checkpoint-2"
    model, images = made()
    with pytest.warns(UserWarning, match=f"checkpoint-4 is left out: {name} is not as it was"):
        fit(model, images, None, SETTINGS, output=folder, resume=True)
    for key, tensor in model.state_dict().items():
        assert tensor.equal(trained[1][key]), key
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.name == "checkpoint-4"


def test_fault_B22_marks_and_missing_files(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder = tmp_path / "training"
    shutil.copytree(trained[0], folder)
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    (folder / "checkpoint-2" / "whole.json").write_text("{")
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-1")
    (folder / "checkpoint-1" / "whole.json").unlink()  # never finished
    shutil.copytree(folder / "checkpoint-1", folder / "checkpoint-0")
    (folder / "checkpoint-0" / "whole").touch()  # as version 0.1 marked it
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.name == "checkpoint-0"
    assert remove_incomplete(folder) == [
        "checkpoint-2 is left out: whole.json is damaged",
        "checkpoint-4 is left out: optimizer.pt is missing",
    ]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-0"]


def test_changed_bytes_of_the_same_length_are_damage(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder = tmp_path / "training"
    shutil.copytree(trained[0], folder)
    file = folder / "checkpoint-4" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = newest_checkpoint(folder)
    assert found is not None and found.name == "checkpoint-2"


def test_the_newest_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for step in (900, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "whole").touch()  # the mark of earlier versions
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-1000"
