"""A run that was stopped goes on, does nothing twice, and ends as if it had not been stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import modwright.recipes.run as running
from modwright.calibration import Statistics
from modwright.checkpoint import open as open_checkpoint
from modwright.recipes import Recipe
from modwright.recipes.run import RunResult, run
from wordy import write_checkpoint, write_text

from .shared import config_of, same_weights

MakeRecipe = Callable[..., Recipe]


class Stopped(BaseException):
    """Stands for the plug that is pulled: no handler of ordinary errors sees it."""


class Accumulator:
    """Counts the stages that are measured and the blocks that are calibrated, and stops at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured: list[str] = []
        self.blocks: list[tuple[str, int]] = []
        self.stop_at_stage = ""
        self.stop_before_block = self.stop_after_block = -1
        measure, store = running.measure_stage, Statistics.store

        def measured(*args: Any, name: str, **kwargs: Any) -> Any:
            if name == self.stop_at_stage:
                raise Stopped
            self.measured.append(name)
            return measure(*args, name=name, **kwargs)

        def stored(statistics: Statistics, index: int, results: Any) -> None:
            if len(self.blocks) == self.stop_before_block:
                raise Stopped
            store(statistics, index, results)
            self.blocks.append((statistics.directory.parent.name, index))
            if len(self.blocks) == self.stop_after_block:
                raise Stopped

        monkeypatch.setattr(running, "measure_stage", measured)
        monkeypatch.setattr(Statistics, "store", stored)

    def start_again(self) -> None:
        self.measured.clear()
        self.blocks.clear()
        self.stop_at_stage = ""
        self.stop_before_block = self.stop_after_block = -1


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accumulator]:
    return Accumulator(monkeypatch)


def blocks(step: int, first: int = 0) -> list[tuple[str, int]]:
    return [(f"step-{step}", index) for index in range(first, 4)]


def test_stopped_between_steps(
    recipe: MakeRecipe, finished: RunResult, watch: Accumulator, tmp_path: Path
) -> None:
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(), tmp_path / "out")
    assert watch.measured == ["before", "1 llm_drop"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.log", "out.work"]

    watch.start_again()
    info: list[str] = []
    done = run(recipe(), tmp_path / "out", check=False, log=info.append)
    assert watch.measured == ["2 modegpt"]
    assert watch.blocks == []  # its statistics were all there
    assert "1 finished steps are taken over" in info
    assert same_weights(done.output, finished.output)
    assert config_of(done.output) == config_of(finished.output)
    assert [s.name for s in done.report.stages] == [s.name for s in finished.report.stages]
    one, two = (r.report.after.measured["perplexity"] for r in (done, finished))
    assert one["value"] == two["value"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.log"]


@pytest.mark.parametrize(
    ("point", "begins_at"),
    # Right after a block's statistics its stream is not there yet, so that block is done again.
    [("stop_before_block", 2), ("stop_after_block", 1)],
)
def test_stopped_inside_calibration(
    point: str,
    begins_at: int,
    recipe: MakeRecipe,
    finished: RunResult,
    watch: Accumulator,
    tmp_path: Path,
) -> None:
    setattr(watch, point, 6)
    with pytest.raises(Stopped):
        run(recipe(), tmp_path / "out")
    assert watch.blocks == [*blocks(1), *blocks(2)[:2]]

    watch.start_again()
    done = run(recipe(), tmp_path / "out", check=False)
    assert watch.measured == ["2 modegpt"]
    assert watch.blocks == blocks(2, first=begins_at)
    assert same_weights(done.output, finished.output)


def test_stopped_while_the_result_is_written(
    recipe: MakeRecipe,
    finished: RunResult,
    watch: Accumulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:

        def stop(*args: Any) -> None:
            raise Stopped

        patch.setattr(running, "check_reopens", stop)
        with pytest.raises(Stopped):
            run(recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    watch.start_again()
    done = run(recipe(), tmp_path / "out", check=False)
    assert watch.measured == []
    assert watch.blocks == []
    assert same_weights(done.output, finished.output)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.log"]


def stopped_at_the_end(recipe: Recipe, watch: Accumulator, out: Path) -> None:
    """Leaves all steps done and nothing written but the work directory."""
    watch.stop_at_stage = "3 llm_drop"
    with pytest.raises(Stopped):
        run(recipe, out, check=False)
    watch.start_again()


def test_a_changed_later_step_is_not_mistaken_for_the_finished_one(
    recipe: MakeRecipe, watch: Accumulator, tmp_path: Path
) -> None:
    """Only the last model is kept, so a changed step 2 sends the run back to the source."""
    first = {"method": "llm_drop", "target": "attention", "n": 1}
    last = {"method": "llm_drop", "target": "mlp", "n": 1}
    nothing = {"perplexity": None, "generate": None, "speed": None, "length": 32}

    def steps(sparsity: float) -> Recipe:
        middle = {"method": "modegpt", "sparsity": sparsity}
        return recipe(steps=[first, middle, last], evaluate=nothing)

    stopped_at_the_end(steps(0.2), watch, tmp_path / "out")
    done = run(steps(0.4), tmp_path / "out", check=False)
    assert watch.measured == ["1 llm_drop", "2 modegpt", "3 llm_drop"]
    alone = run(steps(0.4), tmp_path / "alone", check=False)
    assert same_weights(done.output, alone.output)


def test_a_changed_source_is_begun_anew(
    recipe: MakeRecipe, tiny: Any, watch: Accumulator, tmp_path: Path
) -> None:
    """The name of the model is the same, its weights are not."""
    model = write_checkpoint(tiny("tiny-llama"), tmp_path / "model")
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(model=str(model)), tmp_path / "out")
    watch.start_again()
    write_checkpoint(tiny("tiny-llama", num_key_value_heads=3), model)
    done = run(recipe(model=str(model)), tmp_path / "out", check=False)
    assert watch.measured == ["before", "1 llm_drop", "2 modegpt"]
    assert open_checkpoint(done.output).model.config.num_key_value_heads == 3


def test_a_changed_text_is_begun_anew(
    recipe: MakeRecipe, watch: Accumulator, tmp_path: Path
) -> None:
    """Step 1 calibrated on other words under the same name."""
    text = write_text(tmp_path / "text.txt", seed=1)
    data = {"data": str(text), "windows": 6, "length": 32}
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(calibration=data), tmp_path / "out")
    watch.start_again()
    write_text(text, seed=2)
    run(recipe(calibration=data), tmp_path / "out", check=False)
    assert watch.measured == ["1 llm_drop", "2 modegpt"]  # the baseline did not change


def test_other_versions_begin_anew(
    recipe: MakeRecipe, watch: Accumulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(), tmp_path / "out")
    watch.start_again()
    monkeypatch.setattr(running, "versions", lambda: {"modwright": "9.9.9"})
    run(recipe(), tmp_path / "out", check=False)
    assert watch.measured == ["before", "1 llm_drop", "2 modegpt"]


def test_a_damaged_work_directory_does_not_stop_the_run(
    recipe: MakeRecipe, finished: RunResult, watch: Accumulator, tmp_path: Path
) -> None:
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(), tmp_path / "out")
    watch.start_again()
    stage = tmp_path / "out.work" / "step-1" / "stage.json"
    stage.write_text(json.dumps({"key": json.loads(stage.read_text())["key"]}))
    done = run(recipe(), tmp_path / "out", check=False)
    assert watch.measured == ["1 llm_drop", "2 modegpt"]
    assert same_weights(done.output, finished.output)


def test_titles_and_shards_can_change_on_the_way(
    recipe: MakeRecipe, watch: Accumulator, tmp_path: Path
) -> None:
    """They decide about nothing that is measured or computed."""
    watch.stop_at_stage = "2 modegpt"
    with pytest.raises(Stopped):
        run(recipe(title="one"), tmp_path / "out")
    watch.start_again()
    done = run(recipe(title="two", max_shard_size="100KB"), tmp_path / "out", check=False)
    assert watch.measured == ["2 modegpt"]
    assert done.report.title == "two"
