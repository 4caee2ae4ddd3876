from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from modwright.checkpoint import whole_directory
from modwright.core.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(place: Path, text: str = "new", **options: bool) -> None:
    with whole_directory(place, **options) as folder:
        (folder / "file.txt").write_text(text)


def test_appears_at_the_end_only(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "out"
    with whole_directory(place) as folder:
        assert folder.parent == place.parent
        assert not place.exists()
        (folder / "file.txt").write_text("x")
    assert names(place.parent) == ["out"]
    assert names(place) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), whole_directory(tmp_path / "a" / "out") as folder:
        (folder / "file.txt").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_existing_outputs_need_force(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    write(place, "old")
    with pytest.raises(CheckpointError, match=r"exists and is not empty.*--force"):
        write(place)
    assert (place / "file.txt").read_text() == "old"
    with pytest.raises(ValueError), whole_directory(place, force=True):
        raise ValueError
    assert (place / "file.txt").read_text() == "old"
    (place / "other.txt").write_text("old too")
    write(place, "new", force=True)
    assert (place / "file.txt").read_text() == "new"
    assert names(place) == ["file.txt"]
    assert names(tmp_path) == ["out"]


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(CheckpointError, match="it is a file"):
        write(tmp_path / "out", force=True)
    with pytest.raises(CheckpointError, match="cannot make the directory"):
        write(tmp_path / "out" / "below")
    assert names(tmp_path) == ["out"]


def test_old_output_survives_a_failing_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    write(place, "old")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*Permission denied"):
        write(place, force=True)
    assert (place / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_two_runs_at_once_give_one_refusal(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with whole_directory(place) as folder:
        (folder / "file.txt").write_text("first")
        with pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()}\)"):
            write(place)
    assert (place / "file.txt").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    place = tmp_path / "out"
    code = (
        "import sys; from modwright.checkpoint import whole_directory\n"
        "with whole_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'file.txt').write_text('theirs'); print('in', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(CheckpointError, match=rf"another run \(process {other.pid}\)"):
            write(place)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(timeout=60) == 0
    assert (place / "file.txt").read_text() == "theirs"


def killed_run(place: Path) -> None:
    """Leaves what a run leaves that is killed in the middle of writing."""
    code = (
        "import os, sys; from modwright.checkpoint import whole_directory\n"
        "with whole_directory(sys.argv[1], force=True) as folder:\n"
        "    (folder / 'half.txt').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], check=False)


def test_what_a_killed_run_left_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "out"
    killed_run(place)
    left = names(tmp_path)
    assert len(left) == 2
    assert left[0] == ".out.lock"
    assert left[1].startswith(".out.partial-")
    write(place)
    assert names(tmp_path) == ["out"]
    assert names(place) == ["file.txt"]


@pytest.mark.parametrize("content", ["{}", "", "[1", '{"pid": "x"}'])
def test_an_unreadable_lock_counts_while_it_is_young(content: str, tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    lock.write_text(content)
    with pytest.raises(CheckpointError, match="just started"):
        write(tmp_path / "out")
    os.utime(lock, (1, 1))
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_reused_process_number_holds_no_lock(tmp_path: Path) -> None:
    started = psutil.Process().create_time()
    lock = tmp_path / ".out.lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "started": started - 1000}))
    write(tmp_path / "out")
    lock.write_text(str(os.getpid()))
    with pytest.raises(CheckpointError, match="another run"):
        write(tmp_path / "out", force=True)


def test_an_output_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old-1")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "file.txt").read_text() == "old"


def test_directories_that_hold_other_things_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "home" / "work"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    for place in (below, tmp_path / "home", Path(), Path("..")):
        with pytest.raises(CheckpointError, match="the working directory is in it"):
            write(place, force=True)
    source = tmp_path / "models" / "source"
    source.mkdir(parents=True)
    with (
        pytest.raises(CheckpointError, match="its source is in it"),
        whole_directory(source.parent, force=True, keep=(source,)),
    ):
        pass
    with whole_directory(source, force=True, keep=(source,)) as folder:
        (folder / "new").write_text("x")
    assert names(source) == ["new"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["file.txt"]
