from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import modwright
from modwright.cli.entry import run_command
from modwright.core.errors import CheckpointError, WriteFailed
from modwright.core.files import (
    alone_at,
    require_new,
    tidy_after_killed,
    whole_directory,
    write_file,
    writing,
)
from modwright.edits import Plan, remove


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
        "import sys; from modwright.core.files import whole_directory\n"
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
        "import os, sys; from modwright.core.files import whole_directory\n"
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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1",
        '{"pid": "x"}',
        '{"pid": -1, "started": 1.0}',
        "-7",
        "\x00\xff garbage \n" * 100,
        "{pid}",
    ],
    ids=["empty", "no pid", "cut off", "a word", "negative", "bare negative", "garbage", "ours"],
)
def test_fault_B22_a_lock_file_that_a_killed_run_left_holds_nobody(
    content: str, tmp_path: Path
) -> None:
    """What stands in the file does not matter, however young it is: the system holds the lock."""
    lock = tmp_path / ".out.lock"
    lock.write_text(content.replace("{pid}", str(os.getpid())))
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    lock.write_bytes(content.encode("utf-16"))
    with alone_at(tmp_path / "out", "out"):
        assert int(lock.read_bytes()) == os.getpid()
    tidy_after_killed(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_fault_B22_two_that_find_an_old_lock_file_do_not_both_get_in(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("")
    with (
        alone_at(tmp_path / "out", "out"),
        pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()}\)"),
        alone_at(tmp_path / "out", "out"),
    ):
        pass
    with alone_at(tmp_path / "out", "out"):
        assert names(tmp_path) == [".out.lock"]
    assert names(tmp_path) == []


@pytest.mark.slow
def test_many_runs_that_want_one_place_take_turns(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from modwright.core.errors import CheckpointError\n"
        "from modwright.core.files import alone_at\n"
        "place, inside, got = Path(sys.argv[1]), Path(sys.argv[1] + '.inside'), 0\n"
        "while got < 20:\n"
        "    try:\n"
        "        with alone_at(place, 'it'):\n"
        "            inside.mkdir(); time.sleep(0.001); inside.rmdir(); got += 1\n"
        "    except CheckpointError:\n"
        "        time.sleep(0.001)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]) for _ in range(4)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0, 0]
    assert names(tmp_path) == []


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


def no_space(*given: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_rust(*given: object, **more: object) -> None:
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


def no_space_in_torch(*given: object, **more: object) -> None:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: No space left\nand more")


@pytest.mark.parametrize("content", ["text: é\n", b"\x00bytes", "callback"])
def test_a_file_is_written_whole(content: str | bytes, tmp_path: Path) -> None:
    place = tmp_path / "file.bin"
    place.write_text("old")
    if content == "callback":
        write_file(place, lambda partial: torch.save({"a": torch.ones(2)}, partial))
        assert torch.equal(torch.load(place)["a"], torch.ones(2))
    else:
        write_file(place, content)
        stored = content.encode() if isinstance(content, str) else content
        assert place.read_bytes() == stored
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("fail", [no_space, no_space_in_rust, no_space_in_torch])
def test_a_disk_that_becomes_full_leaves_the_older_file(
    fail: Callable[..., None], tmp_path: Path
) -> None:
    place = tmp_path / "file.bin"
    place.write_text("old")
    with pytest.raises(WriteFailed, match=r"cannot write .*No space left[^\n]*$") as failed:
        write_file(place, fail)
    assert failed.value.exit_code == 1
    with pytest.raises(WriteFailed, match="the same command goes on from it"):
        write_file(place, fail, kept_in=tmp_path)
    assert place.read_text() == "old" and names(tmp_path) == ["file.bin"]


def test_what_the_work_itself_raises_goes_through(tmp_path: Path) -> None:
    def wrong(partial: Path) -> None:
        partial.write_text("half")
        raise ValueError("unknown file extension")

    with pytest.raises(ValueError, match="unknown file extension"):
        write_file(tmp_path / "file.xyz", wrong)
    with pytest.raises(ValueError, match="of the work"), writing(tmp_path):
        raise ValueError("of the work")
    line = "cannot write in '.*': No such file .*; what is finished is kept there"
    with pytest.raises(WriteFailed, match=line), writing(tmp_path):
        (tmp_path / "nowhere" / "there").mkdir()
    assert names(tmp_path) == []


def test_where_nothing_can_be_written_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file") as refused:
        write_file(tmp_path / "nowhere" / "file", "text")
    assert refused.value.exit_code == 2


def test_the_half_file_of_a_killed_run_is_written_over(tmp_path: Path) -> None:
    place = tmp_path / "file.txt"
    (tmp_path / ".file.txt.partial.txt").write_text("what a killed run left, longer than the rest")
    write_file(place, "whole")
    assert place.read_text() == "whole" and names(tmp_path) == ["file.txt"]


def test_a_file_that_stands_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    require_new(tmp_path / "other", False)
    require_new(tmp_path / "file", True)
    with pytest.raises(CheckpointError, match="exists; name another file, or replace it with --fo"):
        require_new(tmp_path / "file", False)
    with pytest.raises(CheckpointError, match="it is a directory; name a file"):
        require_new(tmp_path, True)


def _plan() -> Plan:
    anatomy = modwright.open("preset:tiny-llama").anatomy
    up = anatomy.blocks[0].mlp.up.weight.clone()
    plan = Plan.of(anatomy, "by hand", remove(anatomy.blocks[1].attention))
    return replace(plan, tensors={"one": up, "two": up, "part": up[:2], "turned": up.T})


def test_fault_B5_a_plan_on_a_full_disk_leaves_nothing_and_is_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, place = _plan(), tmp_path / "plan"
    for name in ("plan.safetensors", "plan.json"):
        with monkeypatch.context() as patch:
            whole = Path.replace

            def full(self: Path, to: Path, name: str = name, whole: Any = whole) -> Any:
                return no_space() if to.name == name else whole(self, to)

            patch.setattr(Path, "replace", full)
            with pytest.raises(WriteFailed, match="No space left on device"):
                plan.save(place)
        assert names(tmp_path) == []
    back = Plan.load(plan.save(place))
    assert back.tensors.keys() == plan.tensors.keys()
    assert all(torch.equal(back.tensors[name], plan.tensors[name]) for name in plan.tensors)
    with pytest.raises(CheckpointError, match="is not empty"):
        plan.save(place)
    plan.save(place, force=True)
    assert names(place) == ["plan.json", "plan.safetensors"]


def test_fault_B5_a_page_of_inspect_goes_over_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("precious")
    line = ["inspect", "preset:tiny-llama", "--html", str(page)]
    assert run_command(line) == 2
    assert "exists; name another file, or replace it with --force" in capsys.readouterr().err
    assert page.read_text() == "precious"
    assert run_command([*line, "--force"]) == 0
    assert page.read_text().startswith("<div") and names(tmp_path) == ["page.html"]
