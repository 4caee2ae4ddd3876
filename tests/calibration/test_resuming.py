"""A walk that was stopped goes on, and gives bit for bit what it would have given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from layerwise_cases import Interrupted, StopsAfter, equal_statistics, rows, walk

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, SecondMoments, Similarity
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences
from modwright.edits import remove

COLLECTORS = {"gaps": (Similarity(), BlockDistance(3)), "grams": (SecondMoments(),)}


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """How often the MLP of each block really ran; the recording of arguments does not run it."""
    blocks = Anatomy.of(model).blocks
    runs = [0] * len(blocks)

    def count(index: int) -> Any:
        def listener(*activations: Any) -> None:
            runs[index] += 1

        return listener

    handles = [b.mlp.up.module.register_forward_hook(count(i)) for i, b in enumerate(blocks)]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def stream_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("stream"))


@pytest.mark.contract("L1")
@pytest.mark.parametrize("collectors", COLLECTORS.values(), ids=COLLECTORS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_it_goes_on_where_it_stopped(
    tiny: Any, tmp_path: Path, collectors: Any, steps: int
) -> None:
    """Two batches: step 2 b is the last of block b - 1, whose statistics are not yet written."""
    model = tiny("tiny-llama")
    whole = walk(model, *collectors)
    with pytest.raises(Interrupted):
        walk(model, *collectors, directory=tmp_path, progress=StopsAfter(steps))
    finished = (steps - 1) // 2
    assert len(list(tmp_path.glob("block-*.safetensors"))) == finished
    progress = StopsAfter()
    with counting(model) as runs:
        resumed = walk(model, *collectors, directory=tmp_path, progress=progress)
    assert runs == [0] * finished + [2] * (4 - finished)
    assert progress.done == progress.total == 8
    assert equal_statistics(resumed, whole)
    assert stream_files(tmp_path) == []


def test_it_can_be_stopped_again_and_again(tiny: Any, preset: str, tmp_path: Path) -> None:
    model, collectors = tiny(preset), (BlockDistance(4), SecondMoments())
    for steps in (3, 5, 7):
        with pytest.raises(Interrupted):
            walk(model, *collectors, directory=tmp_path, progress=StopsAfter(steps))
    resumed = walk(model, *collectors, directory=tmp_path)
    assert equal_statistics(resumed, walk(model, *collectors))


def test_a_finished_walk_runs_nothing(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    first = walk(model, Similarity(), directory=tmp_path)
    runs = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *activations: runs.append(1))
    progress = StopsAfter()
    again = walk(model, Similarity(), directory=tmp_path, progress=progress)
    handle.remove()
    assert runs == [] and progress.done == 8
    assert equal_statistics(again, first)


def test_stopped_between_the_two_writes_of_a_block(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rename = tiny("tiny-llama"), HiddenStatesFile.rename

    def killed(self: HiddenStatesFile, path: Path) -> None:
        if path.name == "stream-0002.bin":
            raise Interrupted
        rename(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(HiddenStatesFile, "rename", killed)
        with pytest.raises(Interrupted):
            walk(model, BlockDistance(2), directory=tmp_path)
    assert len(list(tmp_path.glob("block-*.safetensors"))) == 2
    with counting(model) as runs:
        resumed = walk(model, BlockDistance(2), directory=tmp_path)
    assert runs == [0, 2, 2, 2]
    assert equal_statistics(resumed, walk(model, BlockDistance(2)))


@pytest.mark.parametrize("lost", ["stream-*.bin", "stream-0000.bin"])
def test_lost_streams_are_made_again(tiny: Any, tmp_path: Path, lost: str) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(Interrupted):
        walk(model, BlockDistance(3), directory=tmp_path, progress=StopsAfter(5))
    for path in tmp_path.glob(lost):
        path.unlink()
    resumed = walk(model, BlockDistance(3), directory=tmp_path)
    assert equal_statistics(resumed, walk(model, BlockDistance(3)))
    assert stream_files(tmp_path) == []


def test_a_stream_that_was_not_deleted_in_time_goes_at_the_end(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: HiddenStatesFile) -> None:
        raise Interrupted

    model = tiny("tiny-llama")
    with monkeypatch.context() as patched:
        patched.setattr(HiddenStatesFile, "delete", killed)
        with pytest.raises(Interrupted):
            walk(model, Similarity(), directory=tmp_path)
    assert stream_files(tmp_path) == ["stream-0000.bin", "stream-0001.bin"]
    resumed = walk(model, Similarity(), directory=tmp_path)
    assert equal_statistics(resumed, walk(model, Similarity()))
    assert stream_files(tmp_path) == []


def test_a_half_written_block_does_not_count(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(Interrupted):
        walk(model, Similarity(), directory=tmp_path, progress=StopsAfter(3))
    (tmp_path / "block-0001.partial").write_bytes(b"half")
    resumed = walk(model, Similarity(), directory=tmp_path)
    assert equal_statistics(resumed, walk(model, Similarity()))


def test_a_directory_of_another_walk_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    first = walk(model, Similarity(), directory=tmp_path)
    other_model = tiny("tiny-llama", rms_norm_eps=1e-6).__class__(model.config)
    fewer_parts = edit(model, remove(Anatomy.of(model).blocks[1].mlp)).model
    other_data = from_sequences(rows(seed=1), 0, batch_size=2)
    walks = {
        "model": lambda: walk(other_model, Similarity(), directory=tmp_path),
        "parts": lambda: walk(fewer_parts, Similarity(), directory=tmp_path),
        "data": lambda: walk(model, Similarity(), directory=tmp_path, data=other_data),
        "method": lambda: walk(model, Similarity(drop_norm=False), directory=tmp_path),
    }
    for one in walks.values():
        with pytest.raises(
            InvalidInputError, match="another model, data or method; choose another dir"
        ):
            one()
    assert equal_statistics(walk(model, Similarity(), directory=tmp_path), first)
