"""A run that was killed (SIGKILL) goes on with the same command, and ends bit for bit the same."""

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

from wordy import write_text

from .shared import NOTHING, snapshot

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("kill_worker.py")
RECIPES: dict[str, list[dict[str, Any]]] = {
    "llm_drop": [{"method": "llm_drop", "n": 2, "mode": "iterative"}],
    "modegpt": [{"method": "modegpt", "sparsity": 0.3}],
    "two steps": [{"method": "modegpt", "sparsity": 0.2}, {"method": "llm_drop", "n": 1}],
}
Runs = Callable[..., dict[str, Any]]
Tree = Callable[[str], dict[str, Any]]
Unbroken = Callable[[str], tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def tree(wordy_model: Path, wordy_text: Path) -> Tree:
    def make(name: str) -> dict[str, Any]:
        text = str(wordy_text)
        return {
            "model": str(wordy_model),
            "threads": 1,
            "calibration": {"data": text, "windows": 4, "length": 16, "batch_size": 2},
            "steps": RECIPES[name],
            "evaluate": {
                "perplexity": {"data": text, "windows": 2, "length": 16},
                "generate": {"prompt": "w7 w8", "max_new_tokens": 3},
                "speed": None,
                "length": 16,
            },
        }

    return make


@pytest.fixture(scope="module")
def runs(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs a recipe in a process of its own; its answer, and how it ended."""
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
        first = {"recipe": tree("two steps"), "out": str(tmp_path_factory.mktemp("first") / "out")}
        worker.stdin.write(json.dumps(first) + "\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "ready\n"

        def run(**request: Any) -> dict[str, Any]:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
            answer: dict[str, Any] = json.loads(worker.stdout.readline())
            return answer

        yield run
        worker.stdin.close()


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """What a recipe's run says that nothing stops, and where its output is; run once."""

    @cache
    def make(name: str) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp("unbroken") / "out"
        answer = runs(recipe=tree(name), out=str(out))
        assert answer["code"] == 0, answer
        return answer, out

    return make


def result(out: Path) -> dict[str, Any]:
    """All that a run leaves and that does not depend on time."""
    files: dict[str, Any] = snapshot(out)
    report = json.loads(files["report.json"])
    del report["environment"]["memory"]
    for stage in report["stages"]:
        del stage["seconds"]
    for name in ("report.json", "report.html", "report.md"):
        del files[name]
    return {**files, "report": report}


@pytest.mark.contract("L1")
@pytest.mark.parametrize("name", RECIPES)
def test_killed_anywhere_it_ends_the_same(
    name: str, runs: Runs, tree: Tree, unbroken: Unbroken, tmp_path: Path
) -> None:
    """At the last time that each moment comes."""
    recipe = tree(name)
    answer, whole = unbroken(name)
    wanted = result(whole)
    for number, (moment, call) in enumerate(answer["calls"].items()):
        assert call, f"the moment never comes: {moment}"
        place = tmp_path / str(number)
        place.mkdir()
        out = place / "out"
        killed = runs(recipe=recipe, out=str(out), moment=moment, call=call)
        assert killed["code"] == -signal.SIGKILL, (moment, call, killed)
        assert "stopped" not in (place / "out.log").read_text(), "the process died in good order"
        resumed = runs(recipe=recipe, out=str(out))
        assert resumed["code"] == 0, (moment, call, resumed)
        assert result(out) == wanted, (moment, call)
        assert sorted(entry.name for entry in place.iterdir()) == ["out", "out.log"], moment


def test_fault_B22_a_killed_run_with_force_goes_on_without_it(
    runs: Runs, tree: Tree, tmp_path: Path
) -> None:
    recipe, out = tree("llm_drop"), tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    moment = "measuring is done"
    assert runs(recipe=recipe, out=str(out))["code"] == 1, "nobody said that it may be replaced"
    killed = runs(recipe=recipe, out=str(out), force=True, moment=moment, call=2)
    assert killed["code"] == -signal.SIGKILL
    assert [file.name for file in out.iterdir()] == ["old"]
    resumed = runs(recipe=recipe, out=str(out))
    assert resumed["code"] == 0 and not resumed["done_before"], resumed
    assert not (out / "old").exists() and (out / "report.json").exists()


def test_killed_again_and_again_it_ends_the_same(
    runs: Runs, tree: Tree, unbroken: Unbroken, tmp_path: Path
) -> None:
    """Every time a little further."""
    recipe = tree("two steps")
    order = [
        ("measuring is done", 1),
        ("calibration, a block is not written", 2),
        ("calibration, the stream is written", 2),
        ("apply begins", 1),
        ("measuring begins", 1),
        ("a save has weights and nothing else", 1),
        ("calibration, its statistics are written, its stream is not", 3),
        ("a state is not yet known", 2),
        ("the report is half written", 1),
    ]
    for moment, call in order:
        killed = runs(recipe=recipe, out=str(tmp_path / "out"), moment=moment, call=call)
        assert killed["code"] == -signal.SIGKILL, (moment, killed)
    done = runs(recipe=recipe, out=str(tmp_path / "out"))
    assert done["code"] == 0
    assert result(tmp_path / "out") == result(unbroken("two steps")[1])
    # The log tells of all attempts: it is one file from the first to the last.
    log = (tmp_path / "out.log").read_text()
    assert log.count("modwright run into") == len(order) + 1
    assert log.rstrip().endswith("done")


@pytest.mark.parametrize(
    "moment", ["a save is whole and has the wrong name", "work is not removed"]
)
def test_an_older_output_is_there_until_the_new_one_is(
    moment: str, runs: Runs, tree: Tree, unbroken: Unbroken, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    recipe = tree("llm_drop")
    answer, whole = unbroken("llm_drop")
    count = answer["calls"][moment]
    killed = runs(recipe=recipe, out=str(out), force=True, moment=moment, call=count)
    assert killed["code"] == -signal.SIGKILL
    if moment == "work is not removed":
        assert result(out) == result(whole)
    else:
        assert snapshot(out) == {"old.txt": b"old"}
    done = runs(recipe=recipe, out=str(out), force=moment != "work is not removed")
    assert done["code"] == 0 and done["done_before"] == (moment == "work is not removed")
    assert result(out) == result(whole)
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["out", "out.log"]


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CUT = {"method": "drop", "parts": "attention[1]"}
# (moment, its call): 5 steps, a checkpoint after steps 2 and 4, and after the last.
TRAINED = [
    ("a training step is done", 1),  # nothing is kept yet
    ("a checkpoint has weights alone", 1),
    ("a checkpoint lacks its mark", 1),
    ("a checkpoint is whole", 1),
    ("a training step is done", 4),
    ("a checkpoint is whole", 2),
    ("a checkpoint is whole", 3),
    ("what has learned is measured", 2),
    ("a state is not yet known", 2),
]
# 4 steps, each measured and kept.
HEALED = [
    ("a best state is kept and not noted", 1),
    ("a training step is done", 2),
    ("a checkpoint lacks its mark", 2),
    ("a best state is kept and not noted", 3),
    ("a checkpoint is whole", 3),
    ("a checkpoint is whole", 4),
    ("what has learned is measured", 3),
]


def learns(name: str, source: Path, text: Path, other: Path) -> dict[str, Any]:
    """A recipe that trains a model from scratch, or one that heals an opened one."""
    if name == "train":
        data = {"text": str(text), "length": 32, "windows": 20}
        steps = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
        keys = {**steps, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
        model: Any = {"compose": "llama", **SIZES, **HEADS, "tokenizer": "bytes"}
        asked: list[Any] = [{"train": {"data": data, **keys}}]
    else:
        sizes = {"length": 16, "batch_tokens": 64, "rows_at_once": 4, "held_out_windows": 2}
        texts = {"data": {"text": str(text)}, "held_out": {"other": {"text": str(other)}}}
        model = str(source)
        heal = {"tokens": 256, "learning_rate": 3e-4, "held_out_length": 16, **sizes, **texts}
        asked = [CUT, {"heal": heal}]
    return {"model": model, "threads": 1, "steps": asked, "evaluate": NOTHING}


@pytest.mark.parametrize(("name", "moments"), [("train", TRAINED), ("heal", HEALED)])
def test_killed_while_it_learns_it_ends_the_same(
    name: str,
    moments: list[tuple[str, int]],
    runs: Runs,
    wordy_model: Path,
    wordy_text: Path,
    tmp_path: Path,
) -> None:
    other = write_text(tmp_path / "other.txt", 300, seed=5)
    asked = {"recipe": learns(name, wordy_model, wordy_text, other), "learns": True}
    before = snapshot(wordy_model)
    whole = runs(**asked, out=str(tmp_path / "whole" / "out"))
    assert whole["code"] == 0 and whole["source_stays"], whole
    wanted = result(tmp_path / "whole" / "out")
    for number, (moment, call) in enumerate(moments):
        place = tmp_path / str(number)
        place.mkdir()
        killed = runs(**asked, out=str(place / "out"), moment=moment, call=call)
        assert killed["code"] == -signal.SIGKILL, (moment, call, killed)
        resumed = runs(**asked, out=str(place / "out"))
        assert resumed["code"] == 0, (moment, call, resumed)
        assert result(place / "out") == wanted, (moment, call)
        assert sorted(entry.name for entry in place.iterdir()) == ["out", "out.log"], moment
        assert resumed["source_stays"], "the teacher's tensors are not what they were"
    assert snapshot(wordy_model) == before, "the teacher's files are not what they were"


def test_killed_again_and_again_while_it_heals_it_ends_the_same(
    runs: Runs, wordy_model: Path, wordy_text: Path, tmp_path: Path
) -> None:
    other = write_text(tmp_path / "other.txt", 300, seed=5)
    asked = {"recipe": learns("heal", wordy_model, wordy_text, other), "learns": True}
    out = str(tmp_path / "out")
    for _ in range(3):  # each time it comes as far as the next checkpoint and one step more
        killed = runs(**asked, out=out, moment="a training step is done", call=2)
        assert killed["code"] == -signal.SIGKILL, killed
    last = runs(**asked, out=out, moment="a checkpoint is whole", call=9)
    assert last["code"] == 0 and last["calls"]["a training step is done"] == 1
    assert runs(**asked, out=str(tmp_path / "whole" / "out"))["code"] == 0
    assert result(tmp_path / "out") == result(tmp_path / "whole" / "out")
