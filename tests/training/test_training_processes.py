"""Two processes learn what one learns from the joint batch; sharded blocks have its gradients."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes_worker
import pytest
import torch

from launch import launch
from models.tiny import TINY, tiny
from modwright.core.errors import InvalidInputError
from modwright.models import create_model
from modwright.training import Training
from modwright.training.sharding import blocks_of, check_sharding, shard_blocks

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
@pytest.mark.parametrize("work", ["train", "train sharded"])
def test_two_processes_learn_what_one_learns_from_the_joint_batch(
    work: str, tmp_path: Path
) -> None:
    asked = json.dumps({"work": work, "folder": str(tmp_path)})
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


@pytest.mark.slow
def test_a_sharded_training_is_that_of_one_process_and_goes_on_when_killed(tmp_path: Path) -> None:
    asked = {"folder": str(tmp_path)}
    ended = launch([WORKER], 2, TRAIN_WORKER=json.dumps({"work": "killed", **asked}))
    assert [one.code for one in ended] == [-signal.SIGKILL] * 2, ended[0].err[-2000:]
    ended = launch([WORKER], 2, TRAIN_WORKER=json.dumps({"work": "resumed", **asked}))
    assert [one.code for one in ended] == [0, 0], ended[0].err[-2000:]
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in (0, 1))
    for name in ("whole", "resumed", "once more"):
        assert first[name]["in_parts"] == {True}
        same(first[name], second[name], 0)
    same(first["resumed"], first["whole"], 0)

    never = processes_worker.Ends()
    alone = processes_worker.sharded(tmp_path / "alone", never, ema_decay=0.9)
    assert never.in_parts == {False} and "one process has nobody" in alone["said"][0]
    same(first["whole"], alone, 1e-5)
    alone = processes_worker.sharded(None, never, model=alone["model"])
    same(first["once more"], alone, 1e-5)
    # The best state, which every process has, not the last one, which lies in parts.
    stopped = first["interrupted"]
    assert "interrupted after step 3; the model has the state of step 2" in stopped["stopped"]
    alone = processes_worker.sharded(None, processes_worker.Ends(3))
    for name, value in stopped["weights"].items():
        assert torch.allclose(value, alone["weights"][name], atol=1e-5, rtol=0), name


def same(one: dict[str, Any], other: dict[str, Any], far: float) -> None:
    """Weights, losses, norms and what was measured."""
    assert len(one["losses"]) == 6
    for name, value in one["weights"].items():
        assert float((value - other["weights"][name]).abs().max()) <= far, name
    for name in ("losses", "norms"):
        numbers = [torch.tensor(it[name]).double() for it in (one, other)]
        assert float((numbers[0] - numbers[1]).abs().max()) <= far, name
    scores = [torch.tensor([v["score"] for _, v in it["measured"]]) for it in (one, other)]
    assert len(scores[0]) == 4 and float((scores[0] - scores[1]).abs().max()) <= far


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fsdp": "shard_grad_op"}, "fsdp is true, full_shard or false"),
        ({"fsdp_config": {"version": 1}}, "fsdp_config is {version: 2}"),
        ({"fp16": True}, "fp16 does not go with fsdp"),
    ],
)
def test_what_does_not_go_with_sharding_is_refused_at_once(more: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Training.of({"fsdp": True, **more})
    assert Training.of({"fsdp": "full_shard", "fsdp_config": {"version": 2}}).sharded
    assert not Training.of({"fsdp": False}).sharded


def test_models_and_objectives_that_cannot_be_sharded_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="a BatchNorm counts in each process"):
        check_sharding(create_model("resnet18", num_classes=2), None)
    with pytest.raises(InvalidInputError, match="Linear has no blocks"):
        check_sharding(torch.nn.Linear(2, 2), None)
    with pytest.raises(InvalidInputError, match="parameters of its own"):
        check_sharding(tiny("metaformer"), torch.nn.Linear(2, 2))


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_blocks_are_found_in_every_architecture(model_type: str) -> None:
    blocks = blocks_of(tiny(model_type))
    assert blocks
    for block in blocks:
        assert not any(block is part for other in blocks for part in list(other.modules())[1:])


def test_without_processes_nothing_is_sharded() -> None:
    with pytest.raises(InvalidInputError, match=r"torch\.distributed is not set up"):
        shard_blocks(tiny("metaformer"))
