"""Finished steps are known again by what decides about their result, and by nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import CheckpointError
from modwright.core.files import tidy_after_killed
from modwright.recipes.load import resolved
from modwright.recipes.run_directory import Inputs, RunDirectory, file_stamps, step_key
from modwright.report import Stage

VERSIONS = {"modwright": "1", "torch": "2"}
INPUTS = Inputs([["model.safetensors", 10, 7]], ["one", "two"], "three")


def key(tree: dict[str, Any], steps: int = 2, **other: Any) -> str:
    return step_key(tree, steps, other.get("versions", VERSIONS), other.get("inputs", INPUTS))


def leaves(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in leaves(value, (*at, name))]
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return [leaf for i, value in enumerate(tree) for leaf in leaves(value, (*at, i))]
    return [at]


def changed(tree: dict[str, Any], at: tuple[Any, ...]) -> dict[str, Any]:
    other = copy.deepcopy(tree)
    here: Any = other
    for piece in at[:-1]:
        here = here[piece]
    here[at[-1]] = ["something", "else"]
    return other


def test_the_key_follows_everything_that_decides_about_the_result(
    recipe: Callable[..., Any],
) -> None:
    tree = resolved(recipe())
    # Calibration stands in every step after resolving; the rest decides how, not what, is written.
    beside = {"output", "title", "max_shard_size", "calibration", "plugins"}
    followed = [at for at in leaves(tree) if at[0] not in beside]
    assert len(followed) > 40
    keys = {key(changed(tree, at)) for at in followed}
    assert len(keys) == len(followed)
    assert key(tree) not in keys
    for name in beside:
        assert key(changed(tree, (name,))) == key(tree)


def test_the_key_of_a_state_knows_only_the_steps_before_it(recipe: Callable[..., Any]) -> None:
    tree = resolved(recipe())
    other = changed(tree, ("steps", 1, "sparsity"))
    assert key(other, 1) == key(tree, 1)
    assert key(other, 2) != key(tree, 2)
    assert len({key(tree, steps) for steps in range(3)}) == 3


def test_the_key_follows_versions_and_what_the_files_hold(recipe: Callable[..., Any]) -> None:
    tree = resolved(recipe())
    others = [
        key(tree, versions={**VERSIONS, "torch": "3"}),
        key(tree, inputs=Inputs([["model.safetensors", 10, 8]], ["one", "two"], "three")),
        key(tree, inputs=Inputs(INPUTS.model, ["one", "other"], "three")),
        key(tree, inputs=Inputs(INPUTS.model, ["one", "two"], "other")),
        key(tree, inputs=Inputs(INPUTS.model, ["one", "two"], "three", ["digest"])),
    ]
    assert len({key(tree), *others}) == 6
    later = Inputs(INPUTS.model, ["one", "other"], "three")
    assert key(tree, 1, inputs=later) == key(tree, 1)


def test_the_key_does_not_follow_the_order_of_keys(recipe: Callable[..., Any]) -> None:
    tree = resolved(recipe())
    assert key(dict(reversed(tree.items()))) == key(tree)


def test_file_stamps_see_a_changed_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".lock").write_text("not looked at")
    (tmp_path / "folder").mkdir()
    before = file_stamps(tmp_path)
    assert [name for name, _, _ in before] == ["a.txt", "b.txt"]
    (tmp_path / "a.txt").write_text("other")
    assert file_stamps(tmp_path) != before
    assert file_stamps(tmp_path / "b.txt") == [before[1]]


def test_a_stage_is_taken_over_only_by_its_key(tmp_path: Path) -> None:
    work = RunDirectory(tmp_path / "out")
    stage = Stage("before", title="baseline")
    work.keep(0, "key", stage, None)
    assert work.stage(0, "key") == stage
    assert work.stage(0, "other") is None
    assert work.stage(1, "key") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"key": "other"}'])
def test_a_damaged_stage_is_not_taken_over(content: str, tmp_path: Path) -> None:
    work = RunDirectory(tmp_path / "out")
    work.step(0).mkdir(parents=True)
    (work.step(0) / "stage.json").write_text(content)
    assert work.stage(0, "key") is None


def test_models_of_earlier_states_are_let_go(tmp_path: Path, tiny: Any) -> None:
    work = RunDirectory(tmp_path / "out")
    for index in (1, 2):
        work.keep(index, "key", Stage(f"{index} x", method="x"), tiny("tiny-llama"))
        (work.statistics(index, "key") / "block-0").mkdir(parents=True)
    work.forget_before(2)
    assert [work.holds_model(index) for index in (0, 1, 2)] == [False, False, True]
    assert not list(work.root.rglob("statistics-*"))
    assert json.loads((work.step(1) / "stage.json").read_text())["key"] == "key"
    work.remove()
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "deep" / "out"), RunDirectory(tmp_path / "deep" / "out")
    with (
        first.alone(),
        pytest.raises(CheckpointError, match=r"another run \(process \d+\) is writing '.*out'"),
        second.alone(),
    ):
        pass
    with second.alone():
        assert (tmp_path / "deep").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_fault_B22_a_killed_run_with_force_may_still_replace_what_it_was_told_to(
    tmp_path: Path,
) -> None:
    """By the same recipe, and only the same directory, untouched since."""
    out, asked = tmp_path / "out", {"model": "m"}
    out.mkdir()
    work = RunDirectory(out)
    assert not work.may_replace(asked)
    work.acquire(asked)
    assert not work.may_replace(asked)
    work.acquire(asked, force=True)
    assert RunDirectory(out).may_replace(asked)
    assert not work.may_replace({"model": "other"})
    out.rename(tmp_path / ".out.old-7")  # a run that is killed while it puts its result there
    assert not work.may_replace(asked)
    tidy_after_killed(out)
    assert work.may_replace(asked)
    (out / "mine").write_text("made since")
    assert not work.may_replace(asked)
    work.acquire(asked, force=True)
    out.rename(tmp_path / "kept")
    out.mkdir()
    assert not work.may_replace(asked)
    work.acquire(asked)
    assert not work.may_replace(asked)


@pytest.mark.parametrize("content", ["", "null", "[1", "[1, 2]", '"x"'])
def test_a_damaged_note_of_what_may_be_replaced_allows_nothing(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    work = RunDirectory(tmp_path / "out")
    work.acquire({}, force=True)
    (work.root / "replaces.json").write_text(content)
    assert not work.may_replace({})


def test_the_lock_of_a_killed_run_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / ".out.work.lock").write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0}))
    with RunDirectory(tmp_path / "out").alone():
        pass
    assert list(tmp_path.iterdir()) == []
