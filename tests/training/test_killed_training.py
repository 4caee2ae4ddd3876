"""A training that was killed (SIGKILL) goes on with the same command, to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("kill_training_worker.py")
RECIPE = """\
model:
  {name: poolformer_s12, depths: [1, 1], hidden_sizes: [8, 16], stem: [3, 4, 1],
   drop_path_rate: 0.2}
data: {images: digits, train: 64}
objective: {cross_entropy: {mixup: 0.4, cutmix: 1.0}}
settings: {epochs: 3, batch_size: 16, average: AVERAGE, more: {logging_steps: 2}}
threads: 1
checkpoint_every: 3
measure_epochs: true
"""
# 4 steps are an epoch: checkpoints 3, 6 and 9 lie in epochs, 12 at the end of the last.
MOMENTS = [
    ("a step is done", 2),  # nothing is kept yet
    ("a step is done", 8),
    ("a checkpoint has weights alone", 2),
    ("a checkpoint lacks its state", 2),
    ("a checkpoint lacks its mark", 3),
    ("a checkpoint is whole", 4),
    ("the output is whole and has the wrong name", 1),
    ("work is not removed", 1),
]
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Runs ``modwright train`` in a process of its own: its exit code and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with subprocess.Popen(
        [sys.executable, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        first = tmp_path_factory.mktemp("first")
        (first / "recipe.yaml").write_text(RECIPE.replace("AVERAGE", "0.9"))
        arguments = ["train", str(first / "recipe.yaml"), "-o", str(first / "out")]
        worker.stdin.write(json.dumps({"arguments": arguments}) + "\n")

        def run(recipe: Path, out: Path, moment: str = "", call: int = 0) -> dict[str, Any]:
            assert worker.stdin is not None and worker.stdout is not None
            arguments = ["train", str(recipe), "-o", str(out)]
            request = {"arguments": arguments, "moment": moment, "call": call}
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            assert line, "the worker died"
            answer: dict[str, Any] = json.loads(line)
            return answer

        yield run
        worker.stdin.close()


@pytest.fixture(scope="module")
def unbroken(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of a training that nothing stops, with this average of its weights; run once."""

    @cache
    def make(average: str) -> Path:
        place = tmp_path_factory.mktemp("unbroken")
        (place / "recipe.yaml").write_text(RECIPE.replace("AVERAGE", average))
        done = train(place / "recipe.yaml", place / "out")
        assert done["code"] == 0, done["said"]
        return place / "out"

    return make


def result(out: Path) -> dict[str, Any]:
    """All that a training leaves and that does not depend on time."""
    told = json.loads((out / "training.json").read_text())
    del told["seconds"], told["environment"]
    names = ("model.safetensors", "config.json", "recipe.yaml", "curves.svg", "README.md")
    return {"told": told, **{name: (out / name).read_bytes() for name in names}}


@pytest.mark.parametrize(("average", "moments"), [("null", MOMENTS[1:3]), ("0.9", MOMENTS)])
def test_killed_anywhere_it_ends_the_same(
    average: str,
    moments: list[tuple[str, int]],
    train: Train,
    unbroken: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("AVERAGE", average))
    wanted = result(unbroken(average))
    entries = wanted["told"]["log"]
    assert [e["step"] for e in entries if "eval_accuracy" in e] == [4, 8, 12]
    assert {2, 3, 4, 6, 8, 9, 10, 12} == {e["step"] for e in entries if "loss" in e}
    for number, (moment, call) in enumerate(moments):
        out = tmp_path / str(number) / "out"
        killed = train(recipe, out, moment, call)
        assert killed["code"] == -signal.SIGKILL, (moment, killed)
        again = train(recipe, out)
        assert again["code"] == 0, (moment, again["said"])
        assert result(out) == wanted, moment
        left = sorted(entry.name for entry in out.parent.iterdir())
        assert left == ["out", "out.log"], moment


def test_killed_again_and_again_it_ends_the_same(
    train: Train, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("AVERAGE", "0.9"))
    out = tmp_path / "out"
    for _ in range(3):  # each time it comes as far as the next checkpoint and one step more
        assert train(recipe, out, "a step is done", 4)["code"] == -signal.SIGKILL
    last = train(recipe, out)
    assert last["code"] == 0 and "goes on from step 9" in last["said"]
    assert result(out) == result(unbroken("0.9"))


def test_a_changed_recipe_begins_anew(train: Train, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("AVERAGE", "null"))
    out = tmp_path / "out"
    assert train(recipe, out, "a step is done", 8)["code"] == -signal.SIGKILL
    recipe.write_text(RECIPE.replace("AVERAGE", "null").replace("epochs: 3", "epochs: 1"))
    changed = train(recipe, out)
    assert changed["code"] == 0 and "goes on" not in changed["said"]
    assert json.loads((out / "training.json").read_text())["steps"] == 4
