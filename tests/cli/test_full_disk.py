"""A disk that becomes full: one line, exit code 1, finished work kept; the run goes on later."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors.torch import load_file
from torch import equal

import modwright.core.files as files

QUIET = " --no-check --set evaluate.speed=null --set evaluate.generate=null"


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of two megabytes."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here; the other test stands for it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def free(place: Path) -> int:
    return files.shutil.disk_usage(place).free


def room(place: Path, kilobytes: int) -> Path:
    """Fills the disk but for some kilobytes; deleting the file makes room again."""
    filler = place / "filler"
    filler.write_bytes(bytes(free(place) - kilobytes * 1024))
    return filler


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(place / "model.safetensors") for place in (one, other))
    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


def check_failed(done: Any) -> None:
    assert done.code == 1, done.err
    assert done.out == "" and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("modwright: cannot write ")
    assert "No space left on device" in last


def test_wherever_the_disk_becomes_full(
    small_disk: Path,
    recipe_file: Path,
    command: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More room each time, on a machine that promised enough."""
    place = recipe_file.parent
    unbroken = command(f"run recipe.yaml -o whole{QUIET}")
    assert unbroken.code == 0, unbroken.err
    line = f"run recipe.yaml -o {small_disk / 'out'}{QUIET}"
    with monkeypatch.context() as patch:
        patch.setattr("modwright.recipes.estimate.require_space", lambda *given: 0)
        patch.setattr("modwright.checkpoint.saving.require_space", lambda *given: 0)
        failed = []
        for kilobytes in (60, 100, 200, 300, 400, 500, 700, 900):
            filler = room(small_disk, kilobytes)
            done = command(line)
            filler.unlink()
            if done.code == 0:
                break
            check_failed(done)
            failed.append(done.err.splitlines()[-1])
            assert not (small_disk / "out").exists()
        assert done.code == 0, done.err
    assert len({error.partition(": No space")[0] for error in failed}) >= 2, failed
    assert same(small_disk / "out", place / "whole")
    names = sorted(entry.name for entry in small_disk.iterdir())
    assert names == ["out", "out.log"]


def test_too_little_room_is_found_before_work(
    small_disk: Path, recipe_file: Path, command: Callable[[str], Any]
) -> None:
    filler = room(small_disk, 500)  # enough for the output, not for what stands on the way
    before = sorted(small_disk.iterdir())
    done = command(f"run recipe.yaml -o {small_disk / 'other'}{QUIET}")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert "this recipe, into" in last and "on disk and" in last and "are free" in last
    assert sorted(small_disk.iterdir()) == before
    filler.unlink()


def no_space(*given: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_rust(*given: Any, **more: Any) -> None:
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


_replace = Path.replace


def replace_no_stage(self: Path, target: Path) -> Path:
    return no_space() if self.name == ".stage.json.partial.json" else _replace(self, target)  # type: ignore


@pytest.mark.parametrize(
    ("function", "fails"),
    [
        ("modwright.calibration.hidden_states._reserve", no_space),
        ("modwright.calibration.statistics.save_file", no_space_in_rust),
        ("stage", no_space),
        ("transformers.modeling_utils.safe_save_file", no_space_in_rust),
        ("modwright.checkpoint.saving._write_companions", no_space),
        ("modwright.core.files._swap", no_space),
    ],
    ids=["streams", "statistics", "stage", "weights", "companions", "rename"],
)
def test_every_write_says_it_in_one_line(
    function: str,
    fails: Callable[..., None],
    recipe_file: Path,
    command: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no disk can be mounted this stands for it: the write itself fails."""
    line = f"run recipe.yaml -o out{QUIET}"
    before = sorted(path.name for path in recipe_file.parent.iterdir())
    with monkeypatch.context() as patch:
        if function == "stage":
            patch.setattr(Path, "replace", replace_no_stage)
        else:
            patch.setattr(function, fails)
        check_failed(command(line))
    left = sorted(path.name for path in recipe_file.parent.iterdir())
    assert left == sorted([*before, "out.log", "out.work"])
    assert command(line).code == 0
    assert sorted(p.name for p in recipe_file.parent.iterdir()) == sorted(
        [*before, "out", "out.log"]
    )
