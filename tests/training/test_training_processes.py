"""Two processes learn what one learns from the joint batch; sharded blocks have its gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import processes_worker
import pytest
import torch

from launch import launch
from models.tiny import TINY, tiny
from modwright.core.errors import InvalidInputError
from modwright.training.sharding import blocks_of, shard_blocks

WORKER = processes_worker.__file__
SHARDED = sorted(set(TINY) - {"craft"})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the other processes have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_joint_batch(tmp_path: Path) -> None:
    asked = json.dumps({"work": "train", "folder": str(tmp_path)})
    ended = launch([WORKER], 2, TRAIN_WORKER=asked)
    assert [one.code for one in ended] == [0, 0], ended[0].err[-2000:]
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in (0, 1))
    alone = processes_worker.trained()
    assert int(first["steps"]) == int(alone["steps"]) == 8
    rates = first["rates"]
    assert rates.shape == (8, 4) and rates.equal(alone["rates"])  # one_cycle, with groups
    assert rates[:, 2:].equal(rates[:, :2] / 4) and len(rates[:, 0].unique()) == 8
    for name, value in alone.items():
        assert first[name].equal(second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5, rtol=1e-4), name


@pytest.mark.slow
def test_a_recipe_is_trained_by_two_processes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {name: poolformer_s12, depths: [1, 1], hidden_sizes: [8, 16], stem: [3, 4, 1]}\n"
        "data: {images: digits, train: 64}\n"
        "settings: {epochs: 1, batch_size: 16}\n"
    )
    command = ["-m", "modwright", "train", "recipe.yaml", "-o", "out"]
    ended = launch(command, 2, cwd=tmp_path)
    assert [one.code for one in ended] == [0, 0], ended[0].err[-2000:]
    assert "accuracy on test images" in ended[0].out and ended[1].out == ""
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (told["processes"], told["steps"]) == (2, 4)
    odd = launch([*command, "--force", "--set", "settings.batch_size=15"], 2, cwd=tmp_path)
    assert [one.code for one in odd] == [2, 2]
    assert "batch_size 15 cannot be shared by 2 processes" in odd[0].err


@pytest.mark.slow
def test_sharded_blocks_have_the_gradients_of_the_whole_model(tmp_path: Path) -> None:
    asked = json.dumps({"work": "shard", "folder": str(tmp_path), "models": SHARDED})
    ended = launch([WORKER], 2, TRAIN_WORKER=asked)
    assert [one.code for one in ended] == [0, 0], ended[0].err[-2000:]
    for model_type in SHARDED:
        alone = processes_worker.gradients(model_type)
        for index in (0, 1):
            shared = torch.load(tmp_path / f"{model_type}-{index}.pt")
            assert shared.keys() == alone.keys(), model_type
            for name, gradient in alone.items():
                assert torch.allclose(shared[name], gradient, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_blocks_are_found_in_every_architecture(model_type: str) -> None:
    blocks = blocks_of(tiny(model_type))
    assert blocks
    for block in blocks:
        assert not any(block is part for other in blocks for part in list(other.modules())[1:])


def test_without_processes_nothing_is_sharded() -> None:
    with pytest.raises(InvalidInputError, match=r"torch\.distributed is not set up"):
        shard_blocks(tiny("metaformer"))
