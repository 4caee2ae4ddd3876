"""Processes that share the data get what one process gets, and none waits for one that is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import share_worker
import torch

from launch import Ended, launch
from modwright.calibration import Statistics

pytestmark = pytest.mark.slow

WORKER = share_worker.__file__
# Batches of two: 5 sequences are shares of 2 and 1 batches, 2 sequences shares of 1 and none.
CASES = [
    {"model": model, "collectors": collectors, "sequences": sequences}
    for collectors in share_worker.COLLECTORS
    for model, sequences in (("preset:tiny-llama", 5), ("preset:tiny-bert", 2))
]
CASES += [{"model": "preset:tiny-gpt2", "collectors": "grams", "sequences": 7, "dtype": "bfloat16"}]


def run(cases: list[dict[str, Any]], size: int = 2, mpi: bool = False, **more: Any) -> list[Ended]:
    asked = json.dumps({"cases": cases, **more})
    return launch([WORKER], size, mpi=mpi, SHARE_WORKER=asked)


def told(ended: Ended) -> dict[str, Any]:
    assert ended.out, ended.err
    answer: dict[str, Any] = json.loads(ended.out)
    return answer


def alone(case: dict[str, Any], directory: Path) -> Statistics:
    """In this process, with the threads of the others: more of them round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: Statistics = share_worker.walk({**case, "directory": str(directory)}, 0)
    finally:
        torch.set_num_threads(threads)
    return found


def difference(one: Statistics, other: Statistics) -> float:
    """The largest difference of any number, relative to the largest of its tensor."""
    most = 0.0
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value.dtype == b[name].dtype and value.shape == b[name].shape
            there = value.isfinite()
            assert (there == b[name].isfinite()).all()
            scale = value[there].abs().max()
            most = max(most, float((value[there] - b[name][there]).abs().max() / scale))
    return most


def stored(case: dict[str, Any], directory: Path) -> Statistics:
    recipe = json.loads((directory / "walk.json").read_text())
    return Statistics(4, recipe, directory)


@pytest.mark.parametrize("size", [2, 3])
def test_shares_add_up_to_what_one_process_gets(size: int, tmp_path: Path) -> None:
    """Every collector; shares of different sizes, one of them empty."""
    cases = [{**case, "directory": str(tmp_path / str(i))} for i, case in enumerate(CASES)]
    ended = run(cases, size)
    assert [one.code for one in ended] == [0] * size, ended[-1].err
    for index, one in enumerate(ended):
        answer = told(one)
        assert (answer["index"], answer["size"]) == (index, size)
        assert answer["read"] == told(ended[0])["read"] and len(answer["read"]) == len(CASES)
    for i, case in enumerate(CASES):
        single = alone(case, tmp_path / f"alone-{i}")
        assert difference(single, stored(case, tmp_path / str(i))) <= 1e-9, case
    # Streams are gone; statistics stand once, not once for every process.
    names = {path.name for path in tmp_path.glob("?/*")}
    assert names == {"walk.json", *(f"block-{b:04d}.safetensors" for b in range(4))}


CASE = {"model": "preset:tiny-llama", "collectors": "grams", "sequences": 5}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("refuse", "process 1: the activations here are not finite; check the weights"),
        ("crash", "process 1: ZeroDivisionError: a crash"),
    ],
)
def test_an_error_of_one_ends_all_with_its_words(kind: str, line: str, tmp_path: Path) -> None:
    trouble = {"process": 1, "kind": kind, "step": 2}
    case = {**CASE, "directory": str(tmp_path / "walk"), "trouble": trouble}
    main, other = map(told, run([case]))
    assert main == {
        "index": 0,
        "size": 2,
        "read": [],
        "error": line,
        "kind": "ProcessFailed",
        "code": 2 if kind == "refuse" else 1,
    }
    assert other["error"] == line and other["kind"] == "ProcessFailed"


def test_an_error_of_the_main_process_is_its_own(tmp_path: Path) -> None:
    trouble = {"process": 0, "kind": "refuse", "step": 3}
    case = {**CASE, "directory": str(tmp_path / "walk"), "trouble": trouble}
    main, other = map(told, run([case]))
    assert (main["kind"], main["code"]) == ("InvalidInputError", 2)
    assert other["kind"] == "ProcessFailed"
    assert other["error"] == f"the main process: {main['error']}"


@pytest.mark.parametrize("gone", [0, 1])
def test_nobody_waits_for_a_process_that_was_killed(gone: int, tmp_path: Path) -> None:
    """And what was done before is taken over by the next run of the same command."""
    trouble = {"process": gone, "kind": "kill", "step": 3}
    case = {**CASE, "directory": str(tmp_path / "walk"), "trouble": trouble}
    ended = run([case])
    assert ended[gone].code == -9
    left = told(ended[1 - gone])
    assert left["kind"] == "ProcessFailed"
    assert "another process of this run is gone" in left["error"]
    assert "the same command goes on" in left["error"]
    done = len(list((tmp_path / "walk").glob("block-*")))
    assert 0 < done < 4

    again = run([{**CASE, "directory": str(tmp_path / "walk")}])
    assert [one.code for one in again] == [0, 0], again[0].err
    single = alone(CASE, tmp_path / "alone")
    assert difference(single, stored(CASE, tmp_path / "walk")) <= 1e-9


def test_nobody_waits_for_ever_for_a_process_that_hangs(tmp_path: Path) -> None:
    trouble = {"process": 1, "kind": "sleep", "step": 3}
    case = {**CASE, "directory": str(tmp_path / "walk"), "trouble": trouble}
    main, other = map(told, run([case], patience=3))
    assert main["kind"] == other["kind"] == "ProcessFailed"
    assert "silent" in main["error"] and "the same command goes on" in main["error"]


def test_another_number_of_processes_goes_on_from_the_blocks(tmp_path: Path) -> None:
    """Streams of other shares are of no use; the result is the same all the same."""
    case = {**CASE, "directory": str(tmp_path / "walk")}
    trouble = {"process": 1, "kind": "crash", "step": 3}
    run([{**case, "trouble": trouble}])
    assert list((tmp_path / "walk").glob("process-1-of-2/stream-*"))
    resumed = alone(CASE, tmp_path / "walk")
    assert difference(resumed, alone(CASE, tmp_path / "alone")) == 0
    assert not list((tmp_path / "walk").glob("process-*"))


def test_a_place_that_all_see_is_needed() -> None:
    """And MPI starts processes, too."""
    main, other = map(told, run([{**CASE, "directory": None}], mpi=True))
    assert (main["size"], other["size"]) == (2, 2)
    assert (
        main["kind"] == "InvalidInputError" and "into one directory that all see" in main["error"]
    )
    assert other["kind"] == "ProcessFailed"
