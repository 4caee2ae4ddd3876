"""A training step in two processes: the weights are those of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch import Ended, launch
from modwright.recipes.load import load_recipe
from modwright.recipes.run import run
from modwright.report import read_report
from recipes.shared import NOTHING, weights
from wordy import write_text

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LLAMA = {"compose": "llama", **SIZES, **HEADS, "tokenizer": "bytes"}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}
BATCH = 4  # rows of a step, over all processes
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe of one training step, with keys in place of its own."""
    text = write_text(tmp_path / "words.txt", 400)

    def made(processes: int = 1, model: Any = LLAMA, **more: Any) -> Path:
        keys = {
            "data": {"text": str(text), "length": 32, "windows": 20},
            "max_steps": 5,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "per_device_train_batch_size": BATCH // processes,
            **more,
        }
        tree = {"model": model, "threads": 1, "evaluate": NOTHING, "steps": [{"train": keys}]}
        file = tmp_path / f"recipe-{processes}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    return made


def together(file: Path) -> list[Ended]:
    return launch(["-m", "modwright", "run", file.name, "-o", "out", "--no-check"], cwd=file.parent)


def same(one: Path, other: Path) -> None:
    """Weights within 1e-5, losses within 1e-4."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    far = {name: float((value - b[name]).abs().max()) for name, value in a.items()}
    assert max(far.values()) < 1e-5, far
    losses = [
        torch.tensor([loss for _, loss in read_report(place).stages[1].reasons["losses"]])
        for place in (one, other)
    ]
    assert len(losses[0]) == 5 and torch.allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "sharded"),
    [(LLAMA, False), ("preset:byte-llama", False), ("preset:byte-llama", True)],
    ids=["composed", "preset", "sharded"],
)
def test_two_processes_train_what_one_trains(
    model: Any, sharded: bool, write: Write, tmp_path: Path
) -> None:
    main, other = together(write(2, model, **FSDP if sharded else {}))
    assert main.code == 0, main.err
    said = "fsdp: 2 processes share the weights" in (tmp_path / "out.log").read_text()
    assert said == sharded
    assert (other.code, other.out) == (0, "")
    alone = run(load_recipe(write(1, model)), tmp_path / "alone", check=False).output
    same(tmp_path / "out", alone)
    assert read_report(tmp_path / "out").stages[1].reasons["steps"] == 5
    half = run(load_recipe(write(2, model)), tmp_path / "half", check=False).output
    a, b = weights(alone), weights(half)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) > 1e-4
