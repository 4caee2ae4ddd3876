"""The estimate of memory is held by a real run, and it is not silly; without room there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright.recipes.run as running
from modwright.calibration import BlockDistance, SecondMoments, Similarity
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.recipes import Recipe
from modwright.recipes.estimate import estimate_bytes, estimate_resources
from modwright.recipes.run import run
from modwright.surgery import make_method
from modwright.surgery.decompositions import moment_roots, nystrom_mlp
from wordy import write_checkpoint

from .shared import DROP, no_work

MakeRecipe = Callable[..., Recipe]
WORKER = Path(__file__).with_name("memory_worker.py")
# What a run may take beyond its estimate: a twentieth, and what allocators keep for themselves.
MARGIN, ALLOCATORS = 0.05, 12e6
# And how much of the estimate it takes at least.
TAKEN = 0.6

WIDE = {"hidden_size": 240, "intermediate_size": 2560, "num_hidden_layers": 3}
DEEP = {"hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 4096}
MLP = {"method": "modegpt", "sparsity": 0.3, "pairs": ["mlp"]}
ATTENTION = {"method": "modegpt", "sparsity": 0.1, "pairs": ["query_key", "value_output"]}
ALL = {"method": "modegpt", "sparsity": 0.3}


@pytest.mark.slow
@pytest.mark.contract("G1")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's peaks")
@pytest.mark.parametrize(
    ("shape", "steps", "dtype", "largest"),
    [
        (WIDE, [ALL], None, "plan"),
        (WIDE, [MLP], "bfloat16", "plan"),
        (DEEP, [*DROP, ATTENTION], None, "plan"),
        (DEEP, DROP, None, "calibrate"),
    ],
    ids=["wide", "wide in bfloat16", "two steps", "drop"],
)
def test_a_real_run_keeps_its_forecast(
    shape: dict[str, int],
    steps: list[dict[str, Any]],
    dtype: str | None,
    largest: str,
    tiny: Any,
    wordy_model: Path,
    wordy_text: Path,
    tmp_path: Path,
) -> None:
    model = write_checkpoint(tiny.copy("tiny-llama", **shape), tmp_path / "model")

    def tree(place: Path, windows: int, **changed: Any) -> dict[str, Any]:
        text = str(wordy_text)
        return {
            "model": str(place),
            "threads": 1,
            "calibration": {"data": text, "windows": windows, "length": 64, "batch_size": 2},
            "evaluate": {
                "perplexity": {"data": text, "windows": 2, "length": 64},
                "generate": {"prompt": "w7 w8", "max_new_tokens": 3},
                "speed": {"prompt": 8, "new_tokens": 2, "repeats": 1, "max_seconds": 0},
                "length": 64,
            },
            **changed,
        }

    first = tree(wordy_model, 2, steps=[ALL, *DROP])
    asked = tree(model, 20, steps=steps, dtype=dtype)
    request = {"first": first, "recipe": asked, "out": str(tmp_path / "out")}
    # Large tensors go back to the system as soon as they are freed.
    more = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, **more},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout.splitlines()[-1])
    expected = info["estimate"]
    # The result was not reopened in another process here.
    phases = [
        {name: size for name, size in step["phases"].items() if name != "reopen"}
        for step in expected["steps"]
    ]
    peak = expected["weights_bytes"] + max(max(step.values()) for step in phases)
    assert info["most"] <= (1 + MARGIN) * peak + ALLOCATORS
    assert info["most"] >= TAKEN * peak
    assert max(phases[-1], key=phases[-1].__getitem__) == largest
    assert peak <= expected["peak_bytes"]


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once in ``work``, by torch's own account."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    most = now = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("keep", [8, 200, 390])
def test_the_solve_takes_no_more_than_is_said(keep: int) -> None:
    """Up to 4 matrices of the MLP's size beside the moments, and 4.5 of the stream's."""
    size = 400
    x = torch.randn(3 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments, down = x.T @ x, torch.randn(8, size)
    square = moments.nbytes
    assert 1.9 * square < allocated(lambda: nystrom_mlp(down, moments, keep)) < 4.1 * square
    assert 2 * square < allocated(lambda: moment_roots(moments, 1e-4)) < 4.6 * square


def test_what_planning_takes_is_in_the_forecast(recipe: MakeRecipe, wordy_model: Path) -> None:
    opened = open_checkpoint(wordy_model)
    anatomy = opened.anatomy
    widest = max(b.mlp.intermediate_size for b in anatomy.blocks)
    solve, values = make_method("modegpt", {"sparsity": 0.3}).memory_estimate(anatomy)
    (step,) = estimate_resources(recipe(steps=[ALL]), opened.model, "x").steps
    assert solve > 5 * 8 * widest**2  # the moments, and four times their size
    assert step.phases["plan"] == solve + values
    assert make_method("llm_drop", {"n": 1}).memory_estimate(anatomy) == (0, 0)


def test_longer_rows_and_more_streams_need_more(recipe: MakeRecipe, wordy_model: Path) -> None:
    anatomy = open_checkpoint(wordy_model).anatomy

    def requires(collector: Any, **batch: int) -> dict[str, int]:
        return estimate_bytes(anatomy, 1000, [collector], **batch)

    one, three = requires(BlockDistance(1)), requires(BlockDistance(3))
    assert three["streams"] == 2 * one["streams"] and three["entry"] == one["entry"]
    assert requires(SecondMoments())["statistics"] > 100 * requires(Similarity())["statistics"]
    assert requires(SecondMoments())["activations"] == 0
    short, long = (
        requires(SecondMoments(), batch=2, length=8),
        requires(SecondMoments(), batch=2, length=16),
    )
    assert long["activations"] == 2 * short["activations"] > 0


def test_processes_side_by_side_need_more(recipe: MakeRecipe, wordy_model: Path) -> None:
    opened = open_checkpoint(wordy_model)

    def phases(processes: int) -> dict[str, int]:
        found = estimate_resources(recipe(steps=[ALL]), opened.model, "x", processes=processes)
        return found.steps[0].phases

    for name in ("calibrate", "plan", "apply", "measure"):
        assert phases(1)[name] < phases(2)[name] < phases(3)[name], name
    assert phases(3)["plan"] == 3 * phases(1)["plan"]


def test_too_little_memory_names_the_step_and_the_phase(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    opened = open_checkpoint(recipe().model)
    needed = estimate_resources(recipe(steps=[ALL]), opened.model, "x")

    def memory_runs_short(model: Any) -> None:
        free = needed.peak - needed.weights - 1
        monkeypatch.setattr("modwright.checkpoint.memory.available_bytes", lambda: free)

    monkeypatch.setattr(running, "check_finite", memory_runs_short)
    with pytest.raises(InvalidInputError) as caught:
        run(recipe(steps=[ALL]), tmp_path / "out")
    line = str(caught.value)
    assert "'MoDeGPT 30% of MLP, query/key, value/output' (reopen)" in line or "(plan)" in line
    assert "needs about" in line and "are available" in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_found_before_work(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output alone would fit; the statistics and the states on the way do not."""
    no_work(monkeypatch)
    opened = open_checkpoint(recipe().model)
    expected = estimate_resources(recipe(), opened.model, "x")
    assert expected.disk > expected.weights + expected.output

    class Usage:
        free = expected.disk - 1

    monkeypatch.setattr("modwright.core.files.shutil.disk_usage", lambda place: Usage)
    with pytest.raises(CheckpointError, match=r"^this recipe, into '.*out', needs .* on disk and"):
        run(recipe(), tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    Usage.free += 1
    with pytest.raises(AssertionError, match="work was begun"):
        run(recipe(), tmp_path / "out")
