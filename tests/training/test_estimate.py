"""What a training will take: counted against arithmetic; nothing changes by being asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import snapshot, unchanged
from models.tiny import tiny as tiny_image_model
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.training import ObjectiveTrainer, Training
from modwright.training.estimate import (
    TrainingEstimate,
    estimate_training,
    require_resources,
    saved_bytes,
)
from modwright.training.objectives import CrossEntropy, NextToken

ROWS = [{"input_ids": torch.arange(3 + i, 11 + i)} for i in range(10)]


def trainer(model: Any, place: Path, **keys: Any) -> ObjectiveTrainer:
    asked = Training(NextToken(), arguments={"per_device_train_batch_size": 4, **keys})
    arguments = asked.training_arguments(str(place), keep=True)
    return ObjectiveTrainer(model, arguments, train_dataset=ROWS, objective=NextToken())


def test_what_a_backward_pass_keeps_is_counted_once_and_without_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    with saved_bytes(model) as kept:
        model(torch.randn(3, 6))
    # what the first layer reads, and what the activation gives, which the last one reads, too
    assert kept[0] == (3 * 6 + 3 * 5) * 4


def test_memory_and_disk_are_those_of_what_learns(tiny: Any, tmp_path: Path) -> None:
    model = tiny.copy("tiny-llama")
    numbers = sum(p.numel() for p in model.parameters())
    made = trainer(model, tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    plain = estimate_training(made)
    assert plain.steps == 6 and plain.disk_bytes == 0 and plain.seconds > 0
    more = estimate_training(made, averaged=True, best=True, keeps=True)
    # three checkpoints of the model, two moments and the mean, and the best state
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert more.disk_bytes == 3 * (4 * 4 * numbers + buffers) + 4 * numbers + buffers
    assert more.memory_bytes - plain.memory_bytes == 3 * (4 * numbers + buffers)
    assert plain.memory_bytes > 3 * 4 * numbers
    epochs = trainer(tiny.copy("tiny-llama"), tmp_path, num_train_epochs=2.0)
    assert estimate_training(epochs).steps == 6
    few = trainer(
        tiny.copy("tiny-llama"),
        tmp_path,
        max_steps=9,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )
    assert estimate_training(few, keeps=True).disk_bytes == 3 * 3 * 4 * numbers


def test_asking_changes_nothing(tmp_path: Path) -> None:
    model = tiny_image_model("residual_network")
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(0)} for _ in range(4)]
    arguments = Training(CrossEntropy()).training_arguments(str(tmp_path), keep=False)
    made = ObjectiveTrainer(model, arguments, train_dataset=rows, objective=CrossEntropy())
    before, state = snapshot(model), torch.random.get_rng_state()
    modes = [m.training for m in model.modules()]
    estimate_training(made)
    assert unchanged(model, before) and torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"the training needs about .* of memory and"):
        require_resources(TrainingEstimate(1, 1.0, 1 << 60, 0), None)
    with pytest.raises(CheckpointError, match=r"the training, with its checkpoints, needs .* disk"):
        require_resources(TrainingEstimate(1, 1.0, 0, 1 << 60), tmp_path / "not" / "there")
    require_resources(TrainingEstimate(1, 1.0, 1, 1), tmp_path)


@pytest.mark.parametrize(
    ("seconds", "said"), [(30.0, "about 30 s"), (600.0, "10.0 min"), (9000.0, "2.5 h")]
)
def test_time_is_said_in_words(seconds: float, said: str) -> None:
    assert said in TrainingEstimate(2, seconds, 10, 10).sentence()
