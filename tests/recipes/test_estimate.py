"""An estimate writes nothing, reads no text, and what comes of the run lies within it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modwright.recipes.estimate as estimating
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError
from modwright.recipes import Recipe
from modwright.recipes.estimate import estimate_resources
from modwright.recipes.load import resolved
from modwright.recipes.run import RunResult, run

from .shared import NOTHING, snapshot

MakeRecipe = Callable[..., Recipe]


def test_the_result_lies_within_the_forecast(
    recipe: MakeRecipe, finished: RunResult, wordy_model: Path
) -> None:
    opened = open_checkpoint(wordy_model)
    expected = estimate_resources(recipe(), opened.model, opened.name)
    found = [stage.cost["parameters"] for stage in finished.report.stages]
    assert expected.parameters == found[0]
    for step, parameters in zip(expected.steps, found[1:], strict=True):
        assert step.parameters[0] <= parameters <= step.parameters[1]
        assert step.parameters[1] < expected.parameters
    assert [step.calibration_tokens for step in expected.steps] == [6 * 32, 6 * 32]
    assert expected.weights == finished.report.before.cost["stored_bytes"]
    assert [step.title for step in expected.steps] == [s.title for s in finished.report.stages[1:]]


@pytest.mark.parametrize(
    "step",
    [
        {"method": "llm_drop", "n": 2},
        {"method": "llm_drop", "n": 3, "target": "mlp"},
        {"method": "llm_drop", "n": 2, "target": "block", "consecutive": True},
        {"method": "llm_drop", "n": 5, "target": "joint"},
        {"method": "llm_drop", "n": 0},
        {"method": "modegpt", "sparsity": 0.3, "pairs": ["mlp"]},
        {"method": "modegpt", "sparsity": 0.5, "pairs": ["value_output"]},
        {"method": "modegpt", "sparsity": 0.5, "allocation": "uniform"},
        {"method": "modegpt", "sparsity": 0.0},
    ],
    ids=lambda step: "-".join(map(str, step.values())),
)
def test_every_method_keeps_its_forecast(
    step: dict[str, Any], recipe: MakeRecipe, wordy_model: Path, tmp_path: Path
) -> None:
    asked = recipe(steps=[step], evaluate=NOTHING)
    opened = open_checkpoint(wordy_model)
    (expected,) = estimate_resources(asked, opened.model, opened.name).steps
    done = run(asked, tmp_path / "out", check=False)
    low, high = expected.parameters
    assert low <= done.report.after.cost["parameters"] <= high


def test_a_forecast_writes_nothing_and_changes_nothing(
    recipe: MakeRecipe, wordy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(wordy_model.parent)
    opened = open_checkpoint(wordy_model)
    # No text is read: that it is missing is no matter here.
    asked = recipe(calibration={"data": "gone.txt", "windows": 3, "length": 10})
    weights = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    estimate_resources(asked, opened.model, opened.name)
    assert all((opened.model.state_dict()[n] == t).all() for n, t in weights.items())
    assert snapshot(wordy_model.parent) == before
    assert list(tmp_path.iterdir()) == []


def test_a_forecast_is_plain_values(recipe: MakeRecipe, wordy_model: Path) -> None:
    opened = open_checkpoint(wordy_model)
    expected = estimate_resources(recipe(), opened.model, opened.name)
    info = json.loads(json.dumps(expected.to_dict()))
    assert info["recipe"] == resolved(recipe())
    assert info["peak_bytes"] == max(step["memory"] for step in info["steps"])
    assert info["steps"][0]["parameters"] == list(expected.steps[0].parameters)


def test_whether_it_fits_is_reckoned_beside_the_weights(
    recipe: MakeRecipe, wordy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are in memory already, and what is free is what is free beside them."""
    opened = open_checkpoint(wordy_model)
    expected = estimate_resources(recipe(), opened.model, opened.name)
    needed = expected.peak - expected.weights
    assert needed == max(max(step.phases.values()) for step in expected.steps) > 0
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(estimating, "available_bytes", lambda free=free: free)
        assert estimate_resources(recipe(), opened.model, opened.name).fits is fits


def test_more_text_needs_more_memory_and_disk(recipe: MakeRecipe, wordy_model: Path) -> None:
    opened = open_checkpoint(wordy_model)
    steps = [{"method": "modegpt"}]

    def requires(windows: int) -> Any:
        data = {"windows": windows, "length": 256}
        return estimate_resources(
            recipe(steps=steps, calibration=data), opened.model, opened.name
        ).steps[0]

    assert requires(64).phases["calibrate"] > requires(8).phases["calibrate"]
    assert requires(64).disk > requires(8).disk


def test_a_step_that_cannot_be_done_is_named(recipe: MakeRecipe, wordy_model: Path) -> None:
    opened = open_checkpoint(wordy_model)
    asked = recipe(steps=[{"method": "modegpt"}, {"method": "llm_drop", "target": "block", "n": 4}])
    with pytest.raises(
        InvalidInputError, match=r"^steps\.1: llm_drop: n=4, but only 0 to 3 block parts"
    ):
        estimate_resources(asked, opened.model, opened.name)
