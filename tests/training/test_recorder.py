"""What is recorded over a training: copies, at the right steps, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from helpers import snapshot
from modwright.calibration.trajectory import Trajectory
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.training import train
from modwright.training.recorder import Recorder, at_points, of_parameters

ROWS = [{"input_ids": torch.arange(i, i + 8) % 100} for i in range(16)]
KEYS = {"max_steps": 9, "learning_rate": 0.01, "per_device_train_batch_size": 4}


def streams(anatomy: Any) -> Any:
    return {block.address: block.resid_post for block in anatomy.blocks}


def quantities(model: Any) -> dict[str, Tensor]:
    batches = [{"input_ids": torch.arange(12).view(2, 6)}]
    largest = at_points(batches, streams, lambda seen: seen.abs().amax())
    torch.rand(3)  # draws of its own
    return {**largest(model), **of_parameters("model.norm.weight")(model)}


def trained(tiny: Any, *callbacks: Any, **more: Any) -> Any:
    model = tiny.copy("tiny-llama", attention_dropout=0.2)
    train(model, ROWS, KEYS, callbacks=callbacks, log=lambda line: None, **more)
    return model


def test_it_records_copies_and_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    states: list[Any] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states.append(kwargs["model"].model.norm.weight.detach().clone())

    recorder = Recorder(tmp_path / "run.safetensors", quantities, every=3, dense=4)
    with_it, without = trained(tiny, Keep(), recorder), trained(tiny)
    other = snapshot(without)
    assert all(torch.equal(value, other[name]) for name, value in snapshot(with_it).items())
    found = Trajectory.load(tmp_path / "run.safetensors")
    assert found.steps == (0, 1, 2, 4, 6, 9)
    start = tiny("tiny-llama", attention_dropout=0.2).model.norm.weight
    norms = found.values["model.norm.weight"]
    assert torch.equal(norms, torch.stack([start, *(states[step - 1] for step in (1, 2, 4, 6, 9))]))
    assert found.values["blocks.3"].shape == (6,) and found.values["blocks.3"].unique().numel() == 6


class Stop(TrainerCallback):
    """As a kill behind the record of a step, two steps behind the checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise RuntimeError("killed")


def test_of_a_stopped_training_it_is_that_of_the_whole(tiny: Any, tmp_path: Path) -> None:
    def recorder(name: str) -> Recorder:
        return Recorder(tmp_path / name, quantities, every=3, dense=4)

    keys = {**KEYS, "save_strategy": "steps", "save_steps": 4}
    quiet: Any = {"log": lambda line: None}
    train(tiny.copy("tiny-llama"), ROWS, keys, callbacks=[recorder("whole.safetensors")], **quiet)
    there: Any = {"output": tmp_path / "out", **quiet}
    with pytest.raises(RuntimeError, match="killed"):
        parts = [recorder("parts.safetensors"), Stop()]
        train(tiny.copy("tiny-llama"), ROWS, keys, callbacks=parts, **there)
    assert Trajectory.load(tmp_path / "parts.safetensors").steps == (0, 1, 2, 4, 6)
    again = [recorder("parts.safetensors")]
    train(tiny.copy("tiny-llama"), ROWS, keys, callbacks=again, resume=True, **there)
    one, two = (Trajectory.load(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert one.steps == two.steps == (0, 1, 2, 4, 6, 9)
    assert one.values.keys() == two.values.keys()
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)


def test_what_is_wrong_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="every and dense are 1 or more"):
        Recorder(tmp_path / "run.safetensors", quantities, every=0)
    with pytest.raises(InvalidInputError, match=r"no parameter is called nothing\.\*"):
        of_parameters("nothing.*")(tiny("tiny-llama"))
    (tmp_path / "run.safetensors").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="exists; name another file"):
        trained(tiny, Recorder(tmp_path / "run.safetensors", quantities))
    with pytest.raises(CheckpointError, match="cannot read"):
        Trajectory.load(tmp_path / "run.safetensors")
