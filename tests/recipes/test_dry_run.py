"""A dry run really allocates what is largest, refuses what a run refuses, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, SecondMoments, Similarity, Statistics
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.data.text import from_sequences
from modwright.edits import keep_neurons
from modwright.recipes import Recipe
from modwright.recipes.dry_run import dry_run, dry_run_block
from modwright.recipes.run import RunResult, run
from modwright.surgery import make_method

from .shared import DROP, no_work, snapshot
from .test_memory import allocated

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream, no statistics, no measuring."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a file was begun")

    no_work(monkeypatch)
    monkeypatch.setattr(HiddenStatesFile, "__init__", refuse)
    monkeypatch.setattr(Statistics, "store", refuse)


def test_it_tries_everything_and_leaves_nothing(
    recipe: MakeRecipe, wordy_model: Path, tmp_path: Path, nothing_is_written: None
) -> None:
    before = snapshot(wordy_model)
    said: list[str] = []
    tried = dry_run(recipe(), tmp_path / "deep" / "out", log=said.append)
    assert tried is not None
    assert list(tmp_path.iterdir()) == []
    assert snapshot(wordy_model) == before
    drop, narrow = tried.steps
    anatomy = open_checkpoint(wordy_model).anatomy
    assert drop.title == "drop 1 attention" and drop.memory_estimate == 0
    for step in (drop, narrow):
        found = step.calibration
        assert found is not None
        assert found.batch == (2, 32) and found.device == "cpu"
        assert found.weights == sum(p.nbytes for p in anatomy.blocks[0].module.parameters())
        # Three batches of two windows, four blocks.
        assert found.layer_seconds == pytest.approx(12 * found.seconds) and found.seconds > 0
    assert narrow.calibration.statistics == SecondMoments().bytes(anatomy.blocks[0])
    assert narrow.memory_estimate == sum(make_method("modegpt").memory_estimate(anatomy))
    assert tried.free_disk > tried.estimate.disk > 0
    assert tried.peak > tried.estimate.peak
    assert len(said) == 2
    info = json.loads(json.dumps(tried.to_dict()))
    assert info["steps"][1]["calibration"]["batch"] == [2, 32]


def test_the_memory_is_really_taken(recipe: MakeRecipe, wordy_model: Path, tmp_path: Path) -> None:
    asked = recipe(steps=[{"method": "modegpt"}])
    found: list[Any] = []
    held = allocated(lambda: found.append(dry_run(asked, tmp_path / "out")))
    (step,) = found[0].steps
    assert held >= max(step.memory_estimate, step.calibration.statistics) > 0
    without = allocated(lambda: dry_run(recipe(steps=DROP), tmp_path / "out"))
    assert held > without


def test_only_the_largest_block_runs(tiny: Any) -> None:
    from helpers import edit

    source = tiny("tiny-llama")
    blocks = Anatomy.of(source).blocks
    narrow = keep_neurons(blocks[0].mlp, range(16)) + keep_neurons(blocks[1].mlp, range(16))
    model = edit(source, narrow).model
    runs = [0] * 4
    handles = [
        block.mlp.up.module.register_forward_hook(
            lambda *seen, i=block.index: runs.__setitem__(i, runs[i] + 1)
        )
        for block in Anatomy.of(model).blocks
    ]
    windows = from_sequences([tokens(8), tokens(12), tokens(4)], 0, batch_size=1)
    tried = dry_run_block(Anatomy.of(model), windows, [SecondMoments(), BlockDistance(3)])
    for handle in handles:
        handle.remove()
    assert tried.block == 2 and tried.batch == (1, 12)
    assert runs == [0, 0, 2, 0]  # the second time nothing is new to the machine


def tokens(length: int) -> Any:
    import torch

    return torch.arange(3, 3 + length)


def test_no_data_is_refused(tiny: Any) -> None:
    from modwright.calibration import TokenWindows

    with pytest.raises(InvalidInputError, match="no calibration data"):
        dry_run_block(Anatomy.of(tiny("tiny-llama")), TokenWindows((), {}), [Similarity()])


def test_memory_that_cannot_be_had_is_one_line(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore lines")

    monkeypatch.setattr("modwright.recipes.dry_run.measure_block", fail)
    windows = from_sequences([tokens(8)], 0)
    with pytest.raises(InvalidInputError) as caught:
        dry_run_block(Anatomy.of(tiny("tiny-llama")), windows, [SecondMoments()])
    line = str(caught.value)
    assert "largest block does not fit" in line and "smaller calibration.batch_size" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "changed",
    [
        {"calibration": {"data": "gone.txt", "length": 8}},
        {"calibration": {"length": 257}},
        {"evaluate": {"perplexity": {"data": "gone.txt"}}},
        {"steps": [{"method": "llm_drop", "n": 99}]},
        {"model": "preset:tiny-llama"},
    ],
)
def test_it_refuses_what_a_run_refuses_before_work(
    changed: dict[str, Any], recipe: MakeRecipe, tmp_path: Path
) -> None:
    info = []
    for work in (dry_run, run):
        with pytest.raises(ModwrightError) as caught:
            work(recipe(**changed), tmp_path / "out")
        info.append(str(caught.value))
    assert info[0] == info[1]
    assert list(tmp_path.iterdir()) == []


def test_places_are_tried(recipe: MakeRecipe, wordy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("x")
    for place, info, force in [
        (tmp_path / "file", "is a file", True),
        (tmp_path / "full", "something else", False),
        (wordy_model, "begins with", True),
    ]:
        with pytest.raises(CheckpointError, match=info):
            dry_run(recipe(), place, force=force)
    assert dry_run(recipe(), tmp_path / "full", force=True) is not None
    assert snapshot(tmp_path) == {"file": b"x", "full": b"(folder)", "full/a": b"x"}


def test_a_result_that_stands_needs_no_rehearsal(recipe: MakeRecipe, finished: RunResult) -> None:
    said: list[str] = []
    before = snapshot(finished.output)
    assert dry_run(recipe(), finished.output, log=said.append) is None
    assert "holds the result of this recipe already" in said[0]
    assert snapshot(finished.output) == before


def test_steps_without_data_say_so(recipe: MakeRecipe, tmp_path: Path) -> None:
    tried = dry_run(recipe(steps=[{"method": "llm_drop", "n": 0}]), tmp_path / "out")
    assert tried is not None and tried.steps[0].calibration is None
